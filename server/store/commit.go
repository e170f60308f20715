package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Group commit. SQLite has one writer, and what a durable write costs is
// waiting for the disk, not the writing. So nobody commits alone: one goroutine
// takes all the jobs that came while it committed the last ones, runs them in
// one transaction, each in a savepoint of its own, and answers them when that
// is on disk. Jobs run in the order they were queued, which is thus the commit
// order (docs/adr/0015).

const (
	// maxGroup bounds a transaction's jobs, so that the first does not wait
	// for too many others.
	maxGroup = 512
	// lazyDelay is how long a job that nobody waits for may stay in memory
	// while no other brings it to disk. In a burst, which lazyBurst of them
	// are, or such that come closer than lazyLull, answers go before records: up
	// to lazyLatest, or half of maxLazy.
	lazyDelay  = 200 * time.Millisecond
	lazyBurst  = 100
	lazyLull   = 3 * time.Millisecond
	lazyLatest = 2 * time.Second
	// maxLazy bounds them; above it whoever adds one is told to forget it.
	maxLazy = 8192
	// lazyRetry is how long lazy jobs wait after a commit that failed.
	lazyRetry = time.Second
)

// txFunc is a job's work. It may run more than once.
type txFunc func(ctx context.Context, tx *txn) error

// urgency of a job.
type urgency int

const (
	durable urgency = iota // its caller waits until it is on disk
	lax                    // its caller waits until it would outlive the process
	lazy                   // nobody waits
)

const (
	queued int32 = iota
	running
	cancelled
)

type job struct {
	fn      txFunc
	urgency urgency
	state   atomic.Int32
	done    chan error // buffered; nil for lazy ones
	// plain: fn is one or two statements that fail only where the whole
	// database does, and needs no savepoint.
	plain bool
	// calm: it may wait in the queue until the first that waits for it hurries.
	calm bool
	// aside: fn touches nothing that a progress is made of, but through applyEvent.
	aside bool
	// panicked is what fn panicked with; its caller gets it.
	panicked any
	then     []func() // after the commit, in commit order
	undo     []func() // when it did not come to that, last first
}

// txn is a job's view of the group's transaction.
type txn struct {
	*sql.Tx
	stmts *stmts
	job   *job
}

// onCommit has fn called when the job is on disk, before its caller hears of it
// and before any later job begins.
func (t *txn) onCommit(fn func()) { t.job.then = append(t.job.then, fn) }

// onUndo has fn called if the job does not get to disk.
func (t *txn) onUndo(fn func()) { t.job.undo = append(t.job.undo, fn) }

func (j *job) takeBack() {
	for i := len(j.undo) - 1; i >= 0; i-- {
		j.undo[i]()
	}
	j.undo, j.then = nil, nil
}

// ExecContext, QueryContext and QueryRowContext hide those of sql.Tx to use
// statements that are prepared already: parsing is most of what they cost.
func (t *txn) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if st := t.stmts.get(query); st != nil {
		return t.StmtContext(ctx, st).ExecContext(ctx, args...)
	}
	return t.Tx.ExecContext(ctx, query, args...)
}

// QueryContext is as ExecContext.
func (t *txn) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if st := t.stmts.get(query); st != nil {
		return t.StmtContext(ctx, st).QueryContext(ctx, args...)
	}
	return t.Tx.QueryContext(ctx, query, args...)
}

// QueryRowContext is as ExecContext.
func (t *txn) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if st := t.stmts.get(query); st != nil {
		return t.StmtContext(ctx, st).QueryRowContext(ctx, args...)
	}
	return t.Tx.QueryRowContext(ctx, query, args...)
}

// stmts are a connection's prepared statements, by their texts. A text that
// comes a second time is prepared before the next transaction: inside of one
// the pool has no connection to prepare it on. The writer alone uses them.
type stmts struct {
	db   *sql.DB
	m    map[string]*sql.Stmt
	seen map[string]int
}

// maxStmts bounds the prepared statements; texts are constants of this package.
const maxStmts = 200

func newStmts(db *sql.DB) *stmts {
	return &stmts{db: db, m: map[string]*sql.Stmt{}, seen: map[string]int{}}
}

func (s *stmts) get(query string) *sql.Stmt {
	if s == nil {
		return nil
	}
	st := s.m[query]
	if st == nil && len(s.seen)+len(s.m) < maxStmts {
		s.seen[query]++
	}
	return st
}

// prepare makes the statements that were missed.
func (s *stmts) prepare(ctx context.Context) {
	for q, n := range s.seen {
		if n < 2 {
			continue
		}
		delete(s.seen, q)
		if st, err := s.db.PrepareContext(ctx, q); err == nil { // else the query says why
			s.m[q] = st
		}
	}
}

// commitLoop is the one writer, until the queue is closed and empty.
func (s *Store) commitLoop() {
	defer close(s.queue.ended)
	for {
		group := s.queue.take()
		if group == nil {
			return
		}
		s.commit(group)
	}
}

// commit runs a group and answers its jobs.
func (s *Store) commit(group []*job) {
	ctx := context.Background()
	live := group[:0:0]
	strict := false
	for _, j := range group {
		if j.state.CompareAndSwap(queued, running) {
			live = append(live, j)
			strict = strict || j.urgency == durable
		}
	}
	if len(live) == 0 {
		return
	}
	st := s.laxStmts
	if strict {
		st = s.stmts
	}
	errs := make([]error, len(live))
	err := s.runGroup(ctx, st, live, errs)
	if err != nil {
		s.progress.forget()
		// None of them: each finds what it left, if the last is taken back first.
		for i := len(live) - 1; i >= 0; i-- {
			live[i].takeBack()
		}
	}
	var retry []*job
	for i, j := range live {
		if errs[i] == nil {
			errs[i] = err
		}
		broken := isBroken(errs[i])
		if broken {
			errs[i] = s.health.broken(errs[i])
		}
		switch {
		case errs[i] == nil:
			for _, fn := range j.then {
				fn()
			}
		case j.urgency == lazy && broken:
			j.takeBack()
			j.state.Store(queued)
			retry = append(retry, j)
		default:
			j.takeBack()
			if j.urgency == lazy {
				s.log.Warn("a record is lost", "err", errs[i])
			}
		}
	}
	if retry != nil {
		s.queue.again(retry)
	}
	for i, j := range live {
		if j.done != nil {
			j.done <- errs[i]
		}
	}
}

// runGroup runs the jobs in one transaction. What it returns concerns them all;
// errs gets what concerns one alone.
func (s *Store) runGroup(ctx context.Context, st *stmts, group []*job, errs []error) error {
	st.prepare(ctx)
	tx, err := st.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	wrote := false
	for i, j := range group {
		t := &txn{Tx: tx, stmts: st, job: j}
		if !j.aside {
			s.progress.forget()
		}
		if j.plain {
			if err := j.run(ctx, t); err != nil {
				return err
			}
			wrote = true
			continue
		}
		if len(group) == 1 { // the transaction is savepoint enough
			if errs[i] = j.run(ctx, t); errs[i] != nil {
				return nil
			}
			wrote = true
			continue
		}
		if _, err := t.ExecContext(ctx, sqlSavepoint); err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		if errs[i] = j.run(ctx, t); errs[i] != nil {
			if _, err := t.ExecContext(ctx, sqlRollbackTo); err != nil {
				return fmt.Errorf("roll back: %w", errors.Join(err, errs[i]))
			}
			j.takeBack() // before later jobs look
		} else {
			wrote = true
		}
		if _, err := t.ExecContext(ctx, sqlRelease); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
	}
	if !wrote {
		return nil
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.health.well()
	return nil
}

const (
	sqlSavepoint  = `SAVEPOINT job`
	sqlRollbackTo = `ROLLBACK TO job`
	sqlRelease    = `RELEASE job`
)

// write runs fn in a transaction that is on disk when write returns nil.
func (s *Store) write(ctx context.Context, fn txFunc) error {
	return s.wait(ctx, &job{fn: fn, urgency: durable})
}

// writeLax is write without waiting for the disk: what it wrote outlives the
// process, and after a power cut the last of it may be gone, nothing else.
func (s *Store) writeLax(ctx context.Context, fn txFunc) error {
	return s.wait(ctx, &job{fn: fn, urgency: lax})
}

// wait queues j and waits for its end. A caller that goes away takes its job
// along if it has not begun; once it has, the answer is waited for, so that it
// is known whether it was done.
func (s *Store) wait(ctx context.Context, j *job) error {
	j.done = make(chan error, 1)
	if err := s.queue.add(j); err != nil {
		return err
	}
	return j.wait(ctx)
}

// run runs fn. A panic is the caller's, not the writer's, who writes for others
// too.
func (j *job) run(ctx context.Context, t *txn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			j.panicked, err = r, fmt.Errorf("panic: %v", r)
		}
	}()
	return j.fn(ctx, t)
}

func (j *job) wait(ctx context.Context) error {
	err := j.end(ctx)
	if j.panicked != nil {
		panic(j.panicked)
	}
	return err
}

func (j *job) end(ctx context.Context) error {
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		if j.state.CompareAndSwap(queued, cancelled) {
			j.takeBack() // the writer leaves it alone
			return ctx.Err()
		}
		return <-j.done
	}
}

// later queues fn to be written within a moment, with whatever is written then.
// fn is as job's plain and aside say.
func (s *Store) later(fn txFunc) error {
	return s.queue.add(&job{fn: fn, urgency: lazy, plain: true, aside: true})
}

// inTx runs fn in a transaction of its own, outside of the queue: while the
// store is being opened.
func inTx(ctx context.Context, db *sql.DB, fn txFunc) error {
	ctx = context.WithoutCancel(ctx)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := fn(ctx, &txn{Tx: tx, job: &job{}}); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
