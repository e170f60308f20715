package auth

import "time"

// SetClock replaces time.Now.
func (a *Auth) SetClock(now func() time.Time) { a.now = now }

// SetUID makes the server's own user another.
func (a *Auth) SetUID(uid uint32) { a.uid = uid }
