package httpboot

import (
	"fmt"
	"testing"
)

// TestNonces: what was seen is known for as long as a signature is good, within
// bounded memory.
func TestNonces(t *testing.T) {
	var n nonces
	for i := range nonceMemory {
		if !n.first(fmt.Sprint(i)) {
			t.Fatalf("nonce %d is said to be seen", i)
		}
	}
	if n.first("0") || n.first(fmt.Sprint(nonceMemory-1)) {
		t.Error("a nonce counts twice")
	}
	n.forget("7")
	if !n.first("7") {
		t.Error("a nonce that was taken back does not count")
	}
	for i := range 10 {
		n.first(fmt.Sprint("new", i))
	}
	if len(n.seen) > nonceMemory || len(n.ring) != nonceMemory {
		t.Errorf("%d nonces in %d places; want at most %d", len(n.seen), len(n.ring), nonceMemory)
	}
}
