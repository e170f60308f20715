package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"dsas"
	"dsas/client"
)

// state is what the init carries over switch_root, from the program in the
// initramfs to itself in the role's root. It holds the session key: 0600, in
// memory only.
type state struct {
	Node      client.NodeState `json:"node"`
	Config    dsas.NodeConfig  `json:"config"`
	Outbox    json.RawMessage  `json:"outbox"`
	Bond      string           `json:"bond"`
	Env       []string         `json:"env"` // dsas.conf's variables, for services
	Mounts    []string         `json:"mounts"`
	KernelRun time.Duration    `json:"kernelRun"` // since the kernel's start, when stage 1 began
}

const statePath = runDir + "/state.json"

func (s *state) save(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save init state: %w", err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("save init state: %w", err)
	}
	return nil
}

func loadState(path string) (*state, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load init state: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("load init state: %w", err)
	}
	return &s, nil
}
