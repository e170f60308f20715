package dsas

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// ClientID is a DHCP client identifier (option 61) as hex in lower case, type
// byte included: "01525400000101" is a MAC, "ff..." an IAID and DUID (RFC
// 4361). It stays when a NIC is changed.
type ClientID string

// maxClientID is how long an identifier may be, in bytes.
const maxClientID = 255

// ParseClientID reads hex, with colons or dashes between the bytes or without,
// or "text:" and what a client is configured to send as it is.
func ParseClientID(s string) (ClientID, error) {
	bad := func(why string) (ClientID, error) {
		return "", fmt.Errorf("client id %q: %s (write it as ff:00:01:02:03 or text:rack3-box7): %w", s, why, ErrInvalid)
	}
	t := strings.TrimSpace(s)
	if text, ok := strings.CutPrefix(t, "text:"); ok {
		if len(text) < 2 || len(text) > maxClientID {
			return bad("2 to 255 bytes long")
		}
		return ClientID(hex.EncodeToString([]byte(text))), nil
	}
	b, err := hex.DecodeString(strings.NewReplacer(":", "", "-", "").Replace(t))
	switch {
	case err != nil:
		return bad("not hexadecimal")
	case len(b) < 2 || len(b) > maxClientID: // RFC 2132 section 9.14
		return bad("2 to 255 bytes long")
	}
	return ClientID(hex.EncodeToString(b)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler; empty is none.
func (c *ClientID) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*c = ""
		return nil
	}
	*c, err = ParseClientID(string(b))
	return err
}
