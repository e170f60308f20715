package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"dsas"
)

// progress is a node's row of statuses, as far as events change it.
//
// It holds two things that must not be mixed up: what is shown (phase, boot,
// running, image), which anybody on the boot network may move while the node
// does not run, and what the node has proven (proven, provenPhase), which only
// its signed events and the operator change.
type progress struct {
	node        int64
	phase       dsas.Phase
	since, seen int64 // nanoseconds
	bootShown
	proven      string     // id of the newest boot that signed something
	provenPhase dsas.Phase // by its own events alone
	ended       bool       // the power was switched since
	event       int64      // that is the node's last from now on; 0: as it was
}

// bootShown is what a status says of a boot.
type bootShown struct {
	boot    string
	running string
	image   dsas.Digest
}

// errNoStatus: the node does not exist (any more); its events are kept.
var errNoStatus = errors.New("no status")

func readProgress(ctx context.Context, tx *txn, where string, arg any) (p progress, err error) {
	err = tx.QueryRowContext(ctx, `SELECT node_id, phase, since, last_seen, boot, running, image, proven_boot, proven_phase, ended
		FROM statuses JOIN nodes ON id = node_id WHERE `+where, arg).
		Scan(&p.node, &p.phase, &p.since, &p.seen, &p.boot, &p.running, &p.image, &p.proven, &p.provenPhase, &p.ended)
	if errors.Is(err, sql.ErrNoRows) {
		err = errNoStatus
	}
	return p, err
}

func (p *progress) write(ctx context.Context, tx *txn) error {
	_, err := tx.ExecContext(ctx, `UPDATE statuses SET phase = ?, since = ?, last_seen = ?, boot = ?, running = ?, image = ?,
		proven_boot = ?, proven_phase = ?, ended = ?, last_event = coalesce(nullif(?, 0), last_event) WHERE node_id = ?`,
		p.phase, p.since, p.seen, p.boot, p.running, p.image, p.proven, p.provenPhase, p.ended, p.event, p.node)
	return err
}

// runs tells whether the node's services run, as far as is known. What it has
// not signed itself then moves nothing.
func (p *progress) runs() bool {
	return p.phase == dsas.PhaseReady || p.phase == dsas.PhaseServices
}

func (p *progress) show(phase dsas.Phase, at time.Time) {
	if phase != p.phase {
		p.phase, p.since = phase, toNanos(at)
	}
}

// lookUp gives a boot of the node; seq is 0 where it is not known (any more).
func (p *progress) lookUp(ctx context.Context, tx *txn, boot string) (seq int64, b bootShown, err error) {
	b.boot = boot
	if boot == "" {
		return 0, b, nil
	}
	err = tx.QueryRowContext(ctx, `SELECT seq, role, image FROM boots WHERE id = ? AND node_id = ?`, boot, p.node).Scan(&seq, &b.running, &b.image)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return seq, b, err
}

// prove makes boot the one that the node has proven, unless a newer one is
// already, or the boot is not known. It tells whether boot is the proven one.
func (p *progress) prove(ctx context.Context, tx *txn, boot string) (bool, bootShown, error) {
	seq, b, err := p.lookUp(ctx, tx, boot)
	if err != nil {
		return false, b, err
	}
	if seq == 0 && boot == p.boot {
		b = p.bootShown // pruned, but what is known of it is still here
	}
	if boot == p.proven {
		return true, b, nil
	}
	newest, _, err := p.lookUp(ctx, tx, p.proven)
	if err != nil || seq < newest || seq == 0 && p.boot != "" && p.boot != boot {
		return false, b, err
	}
	p.proven, p.provenPhase, p.ended = boot, "", false
	p.bootShown = b
	return true, b, nil
}

// applyEvent changes the status of e's node, where it has one.
func (s *Store) applyEvent(ctx context.Context, tx *txn, e dsas.Event) error {
	if e.Node == "" {
		return nil
	}
	p, ok := s.progress.of[e.Node]
	if !ok || !tx.job.aside {
		var err error
		if p, err = readProgress(ctx, tx, `name = ?`, e.Node); errors.Is(err, errNoStatus) {
			return nil
		} else if err != nil {
			return err
		}
	}
	var err error
	switch {
	case e.Kind == dsas.KindPower:
		p.ended = true
		p.show(dsas.PhaseAfter(p.phase, e), e.Time)
	case e.Kind == dsas.KindBack:
		err = p.back(ctx, tx, e)
	case signed(e):
		err = s.applySigned(ctx, tx, &p, e)
	default:
		err = p.unproven(ctx, tx, e)
	}
	if err != nil {
		return err
	}
	p.event = e.ID
	if err := p.write(ctx, tx); err != nil {
		return err
	}
	if tx.job.aside {
		s.progress.keep(e.Node, p)
	}
	return nil
}

// recentProgress is what the writer knows of nodes' progress, by their names: the
// events of a boot come one after the other, and reading costs more than writing.
// It is the writer's alone, and forgotten with every job that is not aside, and
// with every one that failed.
type recentProgress struct{ of map[string]progress }

// maxProgress bounds it.
const maxProgress = 1 << 14

func (r *recentProgress) keep(node string, p progress) {
	if r.of == nil || len(r.of) >= maxProgress {
		r.of = map[string]progress{}
	}
	r.of[node] = p
}

func (r *recentProgress) forget() { clear(r.of) }

// applySigned takes what a node says of itself.
func (s *Store) applySigned(ctx context.Context, tx *txn, p *progress, e dsas.Event) error {
	ok, b, err := p.prove(ctx, tx, e.Boot)
	if err != nil || !ok {
		return err // a box that hung and was power-cycled may have had events on the way
	}
	// A node's clock may run ahead; it must not be seen in the future, or it
	// would not be missed for as long.
	at := e.Time
	if now := s.now(); at.After(now) {
		at = now
	}
	p.seen = max(p.seen, toNanos(at))
	was := p.provenPhase
	p.provenPhase = dsas.PhaseAfter(was, e)
	switch {
	case p.ended:
		// It is being cut off. If it is not, its heartbeats will tell (back).
	case p.phase == dsas.PhaseLost && p.provenPhase == was:
		// Heard again: that is for whoever watches the heartbeats to say.
	case p.provenPhase == "":
		p.show(dsas.PhaseAfter(p.phase, e), e.Time)
	default:
		p.show(p.provenPhase, e.Time)
		p.bootShown = b
	}
	return nil
}

// unproven takes what anybody may have brought about, and what the server says
// of the node.
func (p *progress) unproven(ctx context.Context, tx *txn, e dsas.Event) error {
	if p.runs() && p.proven != "" && e.Kind != dsas.KindLost {
		return nil
	}
	if !strings.HasPrefix(string(e.Kind), "node.") {
		if err := p.begun(ctx, tx, e.Boot); err != nil {
			return err
		}
	}
	p.show(dsas.PhaseAfter(p.phase, e), e.Time)
	return nil
}

// begun shows a boot that was begun, unless the node runs or a newer one is shown.
func (p *progress) begun(ctx context.Context, tx *txn, boot string) error {
	if p.runs() || boot == "" || boot == p.boot {
		return nil
	}
	seq, b, err := p.lookUp(ctx, tx, boot)
	if err != nil {
		return err
	}
	newest, _, err := p.lookUp(ctx, tx, p.boot)
	if err != nil || seq < newest {
		return err
	}
	p.bootShown = b
	return nil
}

// back makes the node what it was before it fell silent, or before the power
// command that did not reach it.
func (p *progress) back(ctx context.Context, tx *txn, e dsas.Event) error {
	p.ended = false
	if p.provenPhase == "" {
		p.show(dsas.PhaseAfter(p.phase, e), e.Time)
		return nil
	}
	p.show(p.provenPhase, e.Time)
	seq, b, err := p.lookUp(ctx, tx, p.proven)
	if seq > 0 {
		p.bootShown = b
	}
	return err
}

// signed tells whether e was said by the node itself, under its session key.
// Such events always have a boot; what the server says of a node has none.
func signed(e dsas.Event) bool {
	switch e.Kind {
	case dsas.KindLost, dsas.KindBack, dsas.KindAssigned, dsas.KindChanged:
		return false
	}
	return e.Boot != "" && strings.HasPrefix(string(e.Kind), "node.")
}
