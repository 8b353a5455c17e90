package node

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/show"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/tunnel"
)

// UpstreamStatus is the second tunnel, by which the traffic of some peers leaves.
type UpstreamStatus struct {
	State      string         `json:"state"`      // "up"; "idle": no session, and nobody wants one; "connecting"; "down"
	Reason     string         `json:"reason"`     // in words
	Since      Moment         `json:"since"`      // when the state began
	PublicKey  wgkey.Public   `json:"public_key"` // this node's own in it
	Addresses  []netip.Addr   `json:"addresses"`  // likewise: what peers' packets have for their source behind it
	ListenPort uint16         `json:"listen_port"`
	Peers      []UpstreamPeer `json:"peers"`
	Users      []string       `json:"users"` // names of the peers whose traffic leaves by it
	Flows      int            `json:"flows"`
}

// UpstreamPeer is an end of the second tunnel. Byte counts are those of WireGuard, since the tunnel was opened.
type UpstreamPeer struct {
	PublicKey     wgkey.Public `json:"public_key"`
	Endpoint      string       `json:"endpoint"` // address and port; as configured while that is not resolved
	LastHandshake Moment       `json:"last_handshake"`
	RxBytes       uint64       `json:"rx_bytes"`
	TxBytes       uint64       `json:"tx_bytes"`
}

// upstreamStatus returns nil where there is no upstream.
func (n *Node) upstreamStatus(conf *config.Config, now time.Time) *UpstreamStatus {
	u := n.upstream.Load()
	if u == nil || conf.Upstream == nil {
		return nil
	}
	stats, _ := u.tunnel.Stats() // none while the tunnel closes
	is := u.state.Load()
	s := &UpstreamStatus{
		State: is.link.String(), Since: Moment{is.since}, Reason: u.reason(is, stats, now),
		PublicKey: u.conf.Own.PrivateKey.Public(), ListenPort: u.tunnel.ListenPort(),
		Peers: []UpstreamPeer{}, Users: append([]string{}, conf.Upstream.Users...), Flows: u.net.Flows(),
	}
	for _, p := range u.conf.Own.Addresses {
		s.Addresses = append(s.Addresses, p.Addr())
	}
	for i, w := range stats {
		if i == len(u.conf.Ends) {
			break
		}
		p := UpstreamPeer{
			PublicKey: w.PublicKey, Endpoint: u.conf.Ends[i].Endpoint, LastHandshake: Moment{w.LastHandshake}, RxBytes: w.RxBytes, TxBytes: w.TxBytes,
		}
		if w.Endpoint.IsValid() {
			p.Endpoint = w.Endpoint.String()
		}
		s.Peers = append(s.Peers, p)
	}
	return s
}

// reason says in words why the upstream is as it is.
func (u *upstream) reason(is *upstreamState, stats []tunnel.PeerStats, now time.Time) string {
	if is.fault != nil {
		return is.fault.Error()
	}
	endpoint := u.conf.Ends[0].Endpoint
	for _, s := range stats {
		if s.Endpoint.IsValid() {
			endpoint = s.Endpoint.String()
			break
		}
	}
	switch is.link {
	case linkUp:
		return "its endpoint answers"
	case linkIdle:
		return "no session with " + endpoint + ", and nothing to send"
	case linkTrying:
		return "waiting for an answer from " + endpoint + "; packets wait too"
	}
	silent := "no handshake yet"
	if last := lastHandshake(stats); !last.IsZero() {
		silent = fmt.Sprintf("the last handshake was %s ago", now.Sub(last).Round(time.Second))
	}
	return fmt.Sprintf("no answer from %s: %s; new connections are refused, nothing leaves by the host instead", endpoint, silent)
}

func (s Status) writeUpstream(t io.Writer, now time.Time) {
	u := s.Upstream
	if u == nil {
		return
	}
	var addresses []string
	for _, a := range u.Addresses {
		addresses = append(addresses, a.String())
	}
	fmt.Fprintf(t, "\nupstream\t%s since %s: %s\n", show.Printable(u.State), show.Span(now.Sub(u.Since.Time)), show.Printable(u.Reason))
	fmt.Fprintf(t, "leaves as\t%s\n", show.OrDash(strings.Join(addresses, ", ")))
	fmt.Fprintf(t, "used by\t%s; %d flows\n", show.OrDash(show.Printable(strings.Join(u.Users, ", "))), u.Flows)
	for _, p := range u.Peers {
		fmt.Fprintf(t, "endpoint\t%s, handshake %s, received %s, sent %s\n",
			show.OrDash(show.Printable(p.Endpoint)), age(p.LastHandshake, now), show.Bytes(p.RxBytes), show.Bytes(p.TxBytes))
	}
}
