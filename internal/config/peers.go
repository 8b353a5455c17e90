package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	peerDir = "peers.d" // below the state folder: one peer a file
	peerExt = ".conf"
)

// NewPeer is what a user says about a peer to add.
type NewPeer struct {
	Name      string
	PublicKey wgkey.Public // zero: draw a key pair and a preshared key for it
	Allow     Allow
}

// PeerPlan is a peer that has been given keys and addresses, and is not saved yet.
type PeerPlan struct {
	Peer       Peer
	PrivateKey wgkey.Private // zero when the user gave the public key
}

// PlanPeer gives a new peer addresses, and keys where the user has none. It writes nothing.
func (c *Config) PlanPeer(n NewPeer) (*PeerPlan, error) {
	name, err := ParseName(n.Name)
	if err != nil {
		return nil, fmt.Errorf("add peer: %w", err)
	}
	if err := c.checkNew(name, n.PublicKey); err != nil {
		return nil, fmt.Errorf("add peer %s: %w", name, err)
	}
	plan := &PeerPlan{Peer: Peer{Name: name, PublicKey: n.PublicKey, Allow: n.Allow}}
	if n.PublicKey.IsZero() {
		if plan.PrivateKey, err = wgkey.NewPrivate(); err != nil {
			return nil, err
		}
		if plan.Peer.PresharedKey, err = wgkey.NewPreshared(); err != nil {
			return nil, err
		}
		plan.Peer.PublicKey = plan.PrivateKey.Public()
	}
	addrs, err := deviceAddrs(c.Interface, c.Peers)
	if err != nil {
		return nil, fmt.Errorf("add peer %s: %w", name, err)
	}
	for _, a := range addrs {
		plan.Peer.AllowedIPs = append(plan.Peer.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
	}
	return plan, nil
}

// checkNew finds what a new peer would collide with.
func (c *Config) checkNew(name string, key wgkey.Public) error {
	if name == c.Interface.Name {
		return errors.New("this node itself has that name")
	}
	if key == c.Interface.PrivateKey.Public() {
		return errors.New("that is this node's own public key")
	}
	for _, p := range c.Peers {
		if p.Name == name {
			return fmt.Errorf("that name is taken at %s", Position(p.File, p.Line))
		}
		if p.PublicKey == key {
			return fmt.Errorf("peer %s at %s has that key already", p.Name, Position(p.File, p.Line))
		}
	}
	return nil
}

// Save writes the peer to peers.d below state and returns the file.
func (p *PeerPlan) Save(state string) (file string, err error) {
	file = filepath.Join(state, peerDir, p.Peer.Name+peerExt)
	return file, WriteSecret(file, peerText(p.Peer, ""))
}

// RemovePeer takes a peer out of the file it stands in and returns that file. A file of peers.d with nothing else in it is
// deleted; any other is edited, with every line outside the peer's section kept as it is.
func (c *Config) RemovePeer(name string) (file string, err error) {
	i := slices.IndexFunc(c.Peers, func(p Peer) bool { return strings.EqualFold(p.Name, name) })
	if i < 0 {
		names := make([]string, len(c.Peers))
		for i, p := range c.Peers {
			names[i] = p.Name
		}
		return "", fmt.Errorf("remove peer: there is no peer named %s%s", quote(name), didYouMean("", Nearest(name, names), ""))
	}
	peer := c.Peers[i]
	for _, p := range c.Peers {
		if p.PublicKey != peer.PublicKey && slices.Contains(p.AllowPeers, peer.Name) {
			return "", fmt.Errorf("remove peer %s: AllowPeers of peer %s at %s names it; change that first",
				peer.Name, p.Name, Position(p.File, p.Line))
		}
	}
	if c.fromEnvironment(peer) {
		return "", fmt.Errorf("remove peer %s: it comes from the environment: take the variables %s_… away", peer.Name, peer.File)
	}
	if err := cutSection(peer, peer.File != c.File); err != nil {
		return "", fmt.Errorf("remove peer %s: %w", peer.Name, err)
	}
	return peer.File, nil
}

// fromEnvironment reports whether variables describe a peer.
func (c *Config) fromEnvironment(p Peer) bool {
	return slices.ContainsFunc(c.Environment, func(v Variable) bool { return v.Section == "Peer" && strings.HasPrefix(v.Name, p.File+"_") })
}

// cutSection removes the lines from a peer's header to its last entry. A file left without a section is deleted if the
// caller says so.
func cutSection(p Peer, mayDelete bool) error {
	text, err := os.ReadFile(p.File)
	if err != nil {
		return err
	}
	sections := scan(text, func(int, string) {})
	i := slices.IndexFunc(sections, func(s section) bool { return s.line == p.Line && strings.EqualFold(s.name, "Peer") })
	if i < 0 {
		return fmt.Errorf("%s: changed by someone else meanwhile: %w", Position(p.File, p.Line), fs.ErrInvalid)
	}
	if mayDelete && len(sections) == 1 {
		return os.Remove(p.File)
	}
	lines := slices.Collect(strings.Lines(string(text)))
	before, after := lines[:sections[i].line-1], lines[sections[i].end:]
	// Of the blank lines around the gap one run is enough.
	if len(before) == 0 || strings.TrimSpace(before[len(before)-1]) == "" {
		for len(after) > 0 && strings.TrimSpace(after[0]) == "" {
			after = after[1:]
		}
	}
	return replaceFile(p.File, strings.Join(before, "")+strings.Join(after, ""))
}
