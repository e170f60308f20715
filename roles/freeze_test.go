package roles

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"dsas"
)

// TestFreeze: what is rendered from a frozen definition is what is rendered from
// the folder, for every shipped role.
func TestFreeze(t *testing.T) {
	set, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	for _, def := range set.Definitions() {
		frozen, err := Freeze(def)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Freeze(def)
		if err != nil || !bytes.Equal(frozen, again) {
			t.Errorf("Freeze(%s) twice differs, %v", def.Role.Name, err)
		}
		got, err := Thaw(frozen, "sha256:x")
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Role, def.Role) || got.Digest != "sha256:x" {
			t.Errorf("Thaw(%s) = %+v; want %+v", def.Role.Name, got.Role, def.Role)
		}
		for _, in := range sampleInputs(def.Role) {
			want, err := Render(def, in)
			if err != nil {
				t.Fatal(err)
			}
			if have, err := Render(got, in); err != nil || !reflect.DeepEqual(have, want) {
				t.Errorf("Render(frozen %s) = %v, %v; want %v", def.Role.Name, have, err, want)
			}
			wantConf, err := Conf(def, in)
			if err != nil {
				t.Fatal(err)
			}
			if have, err := Conf(got, in); err != nil || have != wantConf {
				t.Errorf("Conf(frozen %s) = %s, %v; want %s", def.Role.Name, have, err, wantConf)
			}
		}
	}
}

func TestThawRefuses(t *testing.T) {
	for name, b := range map[string][]byte{"nothing": nil, "noise": []byte("PK\x03\x04 and no more"), "too much": make([]byte, maxFrozen+1)} {
		if def, err := Thaw(b, ""); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("Thaw(%s) = %+v, %v; want ErrInvalid", name, def.Role, err)
		}
	}
}

func FuzzThaw(f *testing.F) {
	set, err := Load("")
	if err != nil {
		f.Fatal(err)
	}
	for _, def := range set.Definitions() {
		b, err := Freeze(def)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		def, err := Thaw(b, "")
		if err != nil {
			return
		}
		for _, in := range sampleInputs(def.Role) {
			_, _ = Render(def, in) // it must come to an end, and not panic
			_, _ = Conf(def, in)
		}
	})
}
