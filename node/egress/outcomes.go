package egress

import (
	"sync/atomic"

	"culvert.dev/culvert/internal/proxy"
)

// Outcome counts what became of requests: connections, and targets of datagram associations.
type Outcome struct {
	Way    string `json:"way"`    // see Way
	Result string `json:"result"` // "ok", or the proxy.Kind of failure
	Count  uint64 `json:"count"`
}

// outcomes counts by way and result; result 0 is success, then the kinds of failure.
type outcomes [ways][1 + proxy.Kinds]atomic.Uint64

func (o *outcomes) count(w Way, err error) {
	result := 0
	if err != nil {
		result = 1 + int(proxy.KindOf(err))
	}
	o[w][result].Add(1)
}

// Outcomes returns how often requests have ended in which way since New, those that have occurred.
func (e *Egress) Outcomes() (list []Outcome) {
	for w := range e.outcomes {
		for r := range e.outcomes[w] {
			if n := e.outcomes[w][r].Load(); n > 0 {
				result := "ok"
				if r > 0 {
					result = proxy.Kind(r - 1).String()
				}
				list = append(list, Outcome{Way: Way(w).String(), Result: result, Count: n})
			}
		}
	}
	return list
}
