package agent

import (
	"container/heap"
	"time"
)

// dues are the peers that have something to do at some time, the first on top. It is a heap.Interface for its own methods.
type dues []*peer

func (d dues) Len() int           { return len(d) }
func (d dues) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d dues) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i+1, j+1
}

func (d *dues) Push(x any) {
	p := x.(*peer)
	*d = append(*d, p)
	p.place = len(*d)
}

func (d *dues) Pop() any {
	last := len(*d) - 1
	p := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	p.place = 0
	return p
}

// set says when a peer has something to do; zero: never.
func (d *dues) set(p *peer, at time.Time) {
	switch {
	case at.Equal(p.due) && (p.place != 0) == !at.IsZero():
		return
	case at.IsZero() && p.place != 0:
		heap.Remove(d, p.place-1)
		p.due = at
	case at.IsZero():
		p.due = at
	case p.place != 0:
		p.due = at
		heap.Fix(d, p.place-1)
	default:
		p.due = at
		heap.Push(d, p)
	}
}

// first is when the first is due; zero: none is.
func (d dues) first() time.Time {
	if len(d) == 0 {
		return time.Time{}
	}
	return d[0].due
}
