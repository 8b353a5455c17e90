package nat

import "sync"

// EventKind is what happened to a flow.
type EventKind uint8

const (
	EventNew     EventKind = iota // it was entered
	EventUpdate                   // its state, or that of its TCP connection, changed
	EventDestroy                  // it left the table
)

func (k EventKind) String() string { return [...]string{"NEW", "UPDATE", "DESTROY"}[k] }

// Event is one change of one flow. Why is valid for EventDestroy.
type Event struct {
	Kind EventKind
	Why  End
	Flow *Flow
	Now  int64 // table time
}

// observers are those who watch the table.
type observers struct {
	mu   sync.Mutex // guards changes of the list
	list []*observer
}

type observer struct{ fn func(Event) }

// Observe calls fn for every change from now on, on the goroutine that makes it and without a lock held; fn must not block. Events
// of one flow come in order as far as they are caused in order. fn may still run once while stop returns.
func (t *Table) Observe(fn func(Event)) (stop func()) {
	o := &observer{fn}
	t.changeObservers(func(list []*observer) []*observer { return append(list, o) })
	return func() {
		t.changeObservers(func(list []*observer) []*observer {
			for i := range list {
				if list[i] == o {
					return append(list[:i], list[i+1:]...)
				}
			}
			return list
		})
	}
}

// changeObservers replaces the list; readers keep the one they have.
func (t *Table) changeObservers(change func([]*observer) []*observer) {
	t.watch.mu.Lock()
	defer t.watch.mu.Unlock()
	t.watch.list = change(append([]*observer(nil), t.watch.list...))
	if list := t.watch.list; len(list) > 0 {
		t.watchers.Store(&list)
	} else {
		t.watchers.Store(nil)
	}
}

// notify tells the observers, if there are any.
func (t *Table) notify(k EventKind, f *Flow, why End) {
	list := t.watchers.Load()
	if list == nil {
		return
	}
	e := Event{Kind: k, Why: why, Flow: f, Now: t.Now()}
	for _, o := range *list {
		o.fn(e)
	}
}
