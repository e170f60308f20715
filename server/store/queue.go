package store

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// queue is what waits to be written.
type queue struct {
	mu     sync.Mutex
	jobs   []*job
	lazies int       // of jobs
	due    time.Time // of the lazy jobs; zero: there is none
	since  time.Time // when the oldest of them came
	newest time.Time // and the newest
	last   int       // lazies when due was put off
	urgent bool      // somebody waits
	closed bool
	wake   chan struct{} // buffered
	ended  chan struct{}
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

var errClosed = errors.New("the store is closed")

// add queues j. It says no when the store is closed, or j is lazy and too many
// such wait.
func (q *queue) add(j *job) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errClosed
	}
	if j.urgency == lazy {
		if q.lazies >= maxLazy {
			return fmt.Errorf("%d records wait for the disk already; this one is dropped", maxLazy)
		}
		q.lazies++
		q.newest = time.Now()
		if !q.due.IsZero() {
			q.jobs = append(q.jobs, j)
			return nil // whoever sleeps knows when to wake
		}
		q.since = q.newest
		q.due, q.last = q.since.Add(lazyDelay), 0
	}
	q.jobs = append(q.jobs, j)
	if j.urgency != lazy && !j.calm {
		q.urgent = true
	} else if j.calm {
		return nil // whoever waits for it says so
	}
	q.knock()
	return nil
}

// hurry has all that is queued written at once.
func (q *queue) hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs) > 0 && !q.urgent {
		q.urgent = true
		q.knock()
	}
}

// knock wakes whoever takes.
func (q *queue) knock() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take gives the next group, nil when it is closed and empty.
func (q *queue) take() []*job {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		q.mu.Lock()
		wait := time.Hour
		if !q.due.IsZero() {
			now := time.Now()
			if !now.Before(q.due) && q.lazies < maxLazy/2 && now.Sub(q.since) < lazyLatest {
				switch {
				case q.lazies-q.last >= lazyBurst: // more come all the time
					q.due, q.last = now.Add(lazyDelay), q.lazies
				case now.Sub(q.newest) < lazyLull: // a burst has just begun
					q.due = now.Add(lazyLull)
				}
			}
			wait = q.due.Sub(now)
		}
		if len(q.jobs) > 0 && (q.urgent || q.closed || wait <= 0) {
			n := min(len(q.jobs), maxGroup)
			group := q.jobs[:n:n]
			q.jobs = q.jobs[n:]
			if len(q.jobs) == 0 {
				q.jobs, q.urgent, q.lazies, q.due = nil, false, 0, time.Time{}
			} else {
				for _, j := range group {
					if j.urgency == lazy {
						q.lazies--
					}
				}
				q.urgent = true // the rest is due as much
			}
			q.mu.Unlock()
			return group
		}
		if q.closed {
			q.mu.Unlock()
			return nil
		}
		q.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// again puts lazy jobs back in front, to be tried later.
func (q *queue) again(jobs []*job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.jobs = append(jobs, q.jobs...)
	q.lazies += len(jobs)
	q.since = time.Now()
	q.due, q.last = q.since.Add(lazyRetry), q.lazies
}

func (q *queue) close() {
	q.mu.Lock()
	already := q.closed
	q.closed = true
	q.mu.Unlock()
	if !already {
		q.knock()
	}
	<-q.ended
}
