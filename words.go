package dsas

import "fmt"

// Agree gives the word that goes with n things: one of them, or many (or none).
func Agree(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// Count gives "1 node" and "3 nodes" of a noun that takes an s.
func Count(n int, noun string) string { return fmt.Sprintf("%d %s", n, Agree(n, noun, noun+"s")) }
