package dsas

import "errors"

// Sentinels that every adapter wraps, so that a caller can tell with
// errors.Is what kind of failure it met, whichever store or wire it came by.
var (
	// ErrNotFound: the named thing does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict: it exists already, or another thing holds what it wants
	// (a name, a MAC, an address).
	ErrConflict = errors.New("conflict")
	// ErrInvalid: the input is wrong; the message names field, value and way out.
	ErrInvalid = errors.New("invalid")
	// ErrDenied: the caller may not do this.
	ErrDenied = errors.New("denied")
)
