// Package hostnet tells which addresses the host itself has and which networks it is attached to, and follows changes.
//
// It only reads: nothing here configures an interface, and nothing needs a privilege. On Linux it asks rtnetlink and, where
// a sandbox refuses that, the files under /proc/net; elsewhere it asks package net, which knows interfaces but no routes.
// The functions keep no state and are safe for concurrent use.
//
//	snap, err := hostnet.Read()
//	if err != nil {
//		return err
//	}
//	go hostnet.WatchFrom(ctx, snap, 30*time.Second, func(s hostnet.Snapshot) { rebuild(s) })
package hostnet

import (
	"net/netip"
	"slices"
)

// Snapshot is the host's view of its own networks at one moment. The lists are sorted and without duplicates; copies share
// them, so they must not be changed.
type Snapshot struct {
	Addrs  []netip.Addr   // every address of the host, loopback and link-local included, without zone
	OnLink []netip.Prefix // networks that are reached without a gateway, masked; not loopback
	Local  []netip.Prefix // whole networks that the host answers for (routes of type local), masked; not 127.0.0.0/8
}

// Equal reports whether both snapshots tell the same.
func (s Snapshot) Equal(o Snapshot) bool {
	return slices.Equal(s.Addrs, o.Addrs) && slices.Equal(s.OnLink, o.OnLink) && slices.Equal(s.Local, o.Local)
}

// Read takes a snapshot. An error means that not even the addresses are known, and says what was tried.
func Read() (Snapshot, error) {
	c, err := read()
	if err != nil {
		return Snapshot{}, err
	}
	return c.snapshot(), nil
}
