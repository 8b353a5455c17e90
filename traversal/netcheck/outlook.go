package netcheck

import (
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// Result says how two nodes will reach each other.
type Result string

// Results. The names of techniques are those of package punch.
const (
	Direct          Result = "direct"
	DirectPredicted Result = "direct with prediction"
	DirectLowPorts  Result = "direct with low ports"
	DirectSweep     Result = "direct with sweep"
	DirectBirthday  Result = "direct with birthday"
	ByRelay         Result = "relay"
)

var byTechnique = map[punch.Technique]Result{
	punch.Prediction: DirectPredicted, punch.LowPort: DirectLowPorts, punch.Sweep: DirectSweep, punch.Birthday: DirectBirthday,
}

// Explain says what the result takes, for people.
func (r Result) Explain() string {
	switch r {
	case Direct:
		return "within a second"
	case DirectPredicted:
		return "by predicting the next outer port"
	case DirectLowPorts:
		return "from ports below 1024, for which many NATs draw outer ports from a few hundred"
	case DirectSweep:
		return "by trying all ports of the block that the NAT uses"
	case DirectBirthday:
		return "by many sockets and guesses, within some seconds and not always"
	}
	return "the peers stay connected through a relay"
}

// outlooks says how nodes behind each kind of NAT will be reached. It supposes that the other side may bind low ports where this
// one may.
func outlooks(f *Family, lowPorts bool) []Outlook {
	list := []Outlook{}
	if f.Kind == KindUnknown {
		return list
	}
	for _, k := range kinds {
		result := ByRelay
		if f.Kind != KindBlocked && k != KindBlocked {
			result = outlook(f.Hints, hintsOf(k), lowPorts)
		}
		list = append(list, Outlook{k, result})
	}
	return list
}

func outlook(own, peer exchange.Hints, lowPorts bool) Result {
	if plain(&own, &peer) {
		return Direct
	}
	if r, ok := byTechnique[punch.Choose(own, peer, lowPorts, nil)]; ok {
		return r
	}
	return ByRelay
}

// plain reports whether checks to the endpoints that STUN servers see are enough: both see each other's mappings as servers do, or
// one does, and lets answers in from the port that the other gets instead.
func plain(a, b *exchange.Hints) bool {
	switch one, other := oneMapping(a), oneMapping(b); {
	case one && other:
		return true
	case one:
		return lenient(a)
	case other:
		return lenient(b)
	}
	return false
}
