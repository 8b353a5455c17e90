package agent

import (
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

// peer is all that the engine has of one. Only the engine's goroutine uses it, but for what is published.
type peer struct {
	Peer
	number  uint32 // never used again
	machine *path.Machine
	secret  *check.Secret

	session exchange.Session // ours
	theirs  exchange.Session // 0: not heard yet
	keys    check.Keys       // valid with theirs
	targets exchange.Targets // what it makes us probe

	place int       // in dues, counted from 1; 0: not there
	due   time.Time // when the machine is to be stepped

	queue  [classes][]queued  // checks that wait
	mail   []exchange.Message // messages that wait
	mailed bool               // the peer has a place among those with mail

	// As the transport was told last.
	mode   path.Mode
	use    path.Route
	accept []path.Route

	traffic Traffic
	flowing bool      // something flowed within flowFor
	moved   time.Time // when something flowed last
	roamed  time.Time // when the machine was told last where WireGuard sends by itself
	counted bool      // among those that are moving
	sampled bool
	relay   path.Relay

	state      path.State // after the last step that was noted
	admitted   bool       // the machine was let begin
	seated     time.Time  // when
	looked     time.Time  // since when it looks for a path, if it does
	toldActive bool

	answers bucket // responses
	opens   bucket // sealed messages that are opened, by relay
	guesses bucket // by UDP
	lines   bucket // of the log
	held    int    // lines that were held back
	inbox   inbox
	hellos  bucket

	rtt      time.Duration // by relay; 0: not known
	skew     time.Duration // of its clock, if that was the reason to refuse a message
	skewAt   time.Time
	fits     map[path.Route]*fit
	echo     *echo // on the way; nil: none
	punched  punchedAt
	declined bool // the last attempt that the machine, or the peer, asked for, or it is over

	public *published
	dirty  bool // what is published is out of date
}

// published is what others may look at.
type published struct {
	key    wgkey.Public
	status atomic.Pointer[PeerStatus]
}
