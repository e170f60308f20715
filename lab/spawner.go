package lab

import "os/exec"

// Spawner starts processes in a network namespace that end with this process,
// however it ends.
type Spawner struct{ s *spawner }

// NewSpawner makes one; an empty name stands for the namespace that the process
// is in.
func NewSpawner(namespace string) (*Spawner, error) {
	s, err := newSpawner(namespace)
	return &Spawner{s}, err
}

// Start starts cmd.
func (s *Spawner) Start(cmd *exec.Cmd) error { return s.s.start(cmd) }

// Close ends the children that are left, by SIGKILL.
func (s *Spawner) Close() { s.s.close() }
