package egress

import (
	"slices"
	"strings"
	"time"
)

// ExitStatus is what is known about an exit that has been used.
type ExitStatus struct {
	Name  string        `json:"name"` // of the peer
	State State         `json:"state"`
	Since time.Time     `json:"since"`                // of the state; zero for unknown
	RTT   time.Duration `json:"rtt_ns"`               // smoothed, of opening a connection to it
	Err   string        `json:"last_error,omitempty"` // its last failure, which may be over
	ErrAt time.Time     `json:"last_error_at,omitzero"`
	Conns int           `json:"connections"` // open at present
	Idle  int           `json:"idle"`        // opened ahead

	Good uint64 `json:"connected"` // connections made, associations included
	Bad  uint64 `json:"failed"`    // failures of the exit itself
}

// Status returns the exits that have been used, and those of the given names that have not, sorted. Names that are no peer's are left out.
func (e *Egress) Status(configured ...string) []ExitStatus {
	f := e.fleet
	f.mu.Lock()
	gone := f.pruneLocked()
	list := make([]ExitStatus, 0, len(f.exits))
	for _, x := range f.exits {
		list = append(list, x.status())
	}
	f.mu.Unlock()
	for _, name := range configured {
		_, ok := f.c.Exit(name)
		if ok && !slices.ContainsFunc(list, func(s ExitStatus) bool { return s.Name == name }) {
			list = append(list, ExitStatus{Name: name})
		}
	}
	for _, x := range gone {
		x.dropIdle()
	}
	slices.SortFunc(list, func(a, b ExitStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (x *exit) status() ExitStatus {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := &x.health
	s := ExitStatus{
		Name: x.name, State: h.state, Since: h.since, RTT: h.rtt, ErrAt: h.errAt,
		Conns: int(x.conns.Load()), Idle: len(x.idle), Good: x.good.Load(), Bad: x.bad.Load(),
	}
	if h.err != nil {
		s.Err = h.err.Error()
	}
	return s
}
