package api

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"

	"dsas"
)

// The examples of RFC 7396 appendix A.
func TestMergePatch(t *testing.T) {
	for _, c := range []struct{ target, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		var target, patch, want any
		for i, text := range []string{c.target, c.patch, c.want} {
			if err := json.Unmarshal([]byte(text), []*any{&target, &patch, &want}[i]); err != nil {
				t.Fatal(err)
			}
		}
		if got := mergePatch(target, patch); !reflect.DeepEqual(got, want) {
			t.Errorf("mergePatch(%s, %s) = %v; want %v", c.target, c.patch, got, want)
		}
	}
}

func FuzzMergeInto(f *testing.F) {
	for _, s := range []string{`{}`, `{"role":"db"}`, `{"nics":[{"mac":"525400000101"}]}`, `{"bmc":null}`, `{"disks":{"A":null}}`, `[1]`, `{"x":{}}`} {
		f.Add([]byte(s))
	}
	old := dsas.Node{Name: "w1", NICs: []dsas.NIC{{MAC: dsas.MAC{2, 0, 0, 0, 0, 1}}}, Disks: map[string]string{"A": "/dev/a"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		patch, err := decodeRaw(b)
		if err != nil {
			return
		}
		n, err := mergeInto(old, patch)
		if err != nil {
			return
		}
		if _, err := json.Marshal(n); err != nil {
			t.Errorf("mergeInto(%q) gives what cannot be written: %v", b, err)
		}
	})
}

func TestFreeAddress(t *testing.T) {
	sub := func(prefix, first, last string) dsas.Subnet {
		p := netip.MustParsePrefix(prefix)
		s := dsas.Subnet{Prefix: p, Server: p.Addr().Next()}
		if first != "" {
			s.Pool = dsas.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
		}
		return s
	}
	for _, c := range []struct {
		subnets []dsas.Subnet
		name    string
		want    string // "": none
	}{
		{[]dsas.Subnet{sub("10.0.0.0/24", "", "")}, "w101", "10.0.0.101/24"},
		{[]dsas.Subnet{sub("10.0.0.0/24", "", "")}, "w1", "10.0.0.2/24"},   // .1 is the server's
		{[]dsas.Subnet{sub("10.0.0.0/24", "", "")}, "w255", "10.0.0.2/24"}, // broadcast
		{[]dsas.Subnet{sub("10.0.0.0/24", "", "")}, "w999", "10.0.0.2/24"},
		{[]dsas.Subnet{sub("10.0.0.0/22", "", "")}, "w300", "10.0.1.44/22"}, // the 300th
		{[]dsas.Subnet{sub("10.0.0.0/22", "", "")}, "rack1-n07", "10.0.0.7/22"},
		{[]dsas.Subnet{sub("10.0.0.128/25", "", "")}, "w130", "10.0.0.130/25"},
		{[]dsas.Subnet{sub("10.0.0.0/24", "10.0.0.2", "10.0.0.253")}, "web", "10.0.0.254/24"},
		{[]dsas.Subnet{sub("10.0.0.0/24", "10.0.0.2", "10.0.0.254")}, "web", ""},
		{[]dsas.Subnet{sub("10.0.0.0/24", "10.0.0.2", "10.0.0.254"), sub("10.0.1.0/24", "", "")}, "w5", "10.0.1.5/24"},
		{[]dsas.Subnet{sub("10.0.0.0/8", "10.0.0.2", "10.255.255.250")}, "web", "10.255.255.251/8"},
		{[]dsas.Subnet{sub("255.255.255.0/24", "", "")}, "web", "255.255.255.2/24"},
		{[]dsas.Subnet{sub("10.0.0.0/31", "", "")}, "web", "10.0.0.0/31"},
		{nil, "web", ""},
	} {
		got, err := newAddresses(nil, nil, nil).free(c.subnets, c.name)
		if (err != nil) != (c.want == "") || err == nil && got.String() != c.want {
			t.Errorf("free(%v, %s) = %v, %v; want %s", c.subnets, c.name, got, err, c.want)
		}
	}
}
