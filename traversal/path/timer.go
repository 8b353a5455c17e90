package path

import "time"

// timer is one of the things that a machine waits for.
type timer uint8

const (
	timerTell     timer = iota // candidates are to be sent
	timerStart                 // a round of checks begins
	timerRound                 // it ends
	timerDecide                // whether to propose a pair
	timerTrial                 // of a proposal or trial: repeat, ask again, give up
	timerWatch                 // of the path in use
	timerEvaluate              // whether there is a better one
	timerRetry                 // the next attempt while relayed
	timerLookOut               // the next check of a path that was lost
	timerBan                   // a ban ends
	timerPunch                 // a technique has taken too long

	numTimers
)

func (m *Machine) start(t timer, at time.Time) { m.due[t] = at }

func (m *Machine) stop(t timer) { m.due[t] = time.Time{} }

// sooner starts a timer unless it is due before.
func (m *Machine) sooner(t timer, at time.Time) { m.due[t] = earlier(m.due[t], at) }

// fireDue runs what is due. What a timer starts lies in the future, or is another timer's, so this ends; the bound is for what
// would otherwise be an endless loop if that were not so.
func (m *Machine) fireDue() {
	for range 4 * numTimers {
		fired := false
		for t := range m.due {
			if at := m.due[t]; !at.IsZero() && !at.After(m.now) {
				m.due[t] = time.Time{}
				m.fire(timer(t))
				fired = true
			}
		}
		if !fired {
			return
		}
	}
	for t, at := range m.due {
		if !at.IsZero() && !at.After(m.now) {
			m.due[t] = m.now.Add(time.Second)
		}
	}
}

func (m *Machine) fire(t timer) {
	switch t {
	case timerTell:
		m.sendCandidates()
	case timerStart:
		m.startDue()
	case timerRound:
		m.roundOver()
	case timerDecide:
		m.consider()
	case timerTrial:
		m.trialDue()
	case timerWatch:
		m.watch()
	case timerEvaluate:
		m.evaluate()
	case timerRetry:
		m.retry()
	case timerLookOut:
		m.lookOutDue()
	case timerBan:
		m.banOver()
	case timerPunch:
		m.punchOver()
	}
}

// earlier returns the first of two times of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// limit lets something happen once every so often, and several times at once after a pause. Zero value: nothing has happened.
type limit struct{ full time.Time }

// ready returns the earliest time of the next one: in the past if it is due.
func (l *limit) ready(every time.Duration, burst int) time.Time {
	if l.full.IsZero() {
		return l.full
	}
	return l.full.Add(-time.Duration(burst-1) * every)
}

func (l *limit) take(now time.Time, every time.Duration) { l.full = later(l.full, now).Add(every) }
