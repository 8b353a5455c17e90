package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// exitMark stands between a user's name and that of the exit. Where there are no users, nothing stands before its "exit+".
const exitMark = "+exit+"

// account is a user by hashes, so that comparing takes the same time whatever lengths the right ones have.
type account struct{ name, password [sha256.Size]byte }

type accounts []account

func newAccounts(users []User) accounts {
	list := make(accounts, 0, len(users))
	for _, u := range users {
		list = append(list, account{sha256.Sum256([]byte(u.Name)), sha256.Sum256([]byte(u.Password))})
	}
	return list
}

// match reports whether there is such a user. It compares with all of them.
func (a accounts) match(name, password string) bool {
	n, p := sha256.Sum256([]byte(name)), sha256.Sum256([]byte(password))
	found := 0
	for i := range a {
		found |= subtle.ConstantTimeCompare(n[:], a[i].name[:]) & subtle.ConstantTimeCompare(p[:], a[i].password[:])
	}
	return found == 1
}

// login checks credentials and returns the user's name and the exit that its form asks for. Where there are no users, all
// credentials are right, and those of the form exit+NAME choose an exit.
func (s *Server) login(user, password string) (name, exit string, ok bool) {
	if len(s.accounts) == 0 {
		exit, chosen := strings.CutPrefix(user, exitMark[1:])
		if !chosen {
			return "", "", true
		}
		return "", exit, isExitName(exit)
	}
	whole := s.accounts.match(user, password)
	i := max(strings.LastIndex(user, exitMark), 0)
	part := s.accounts.match(user[:i], password)
	switch {
	case whole:
		return user, "", true
	case part && i > 0:
		exit = user[i+len(exitMark):]
		return user[:i], exit, isExitName(exit)
	default:
		return "", "", false
	}
}

// isExitName reports whether a client's word can be the name of an exit at all. Which exits there are is not known here.
func isExitName(s string) bool { return len(s) <= maxNameLen && faultOfName(s) == "" }

const (
	penaltyTime = time.Second // between a wrong login and the answer to it
	maxPenalty  = 8           // logins of one guesser that wait for such an answer; more are refused unseen
)

// penalties slows those down who guess passwords: each wrong login waits, and one guesser waits with a few at a time only.
type penalties struct {
	mu      sync.Mutex // guards the following
	waiting map[guesser]int
}

// guesser is who guesses, and whose password: others behind the same address are not to be locked out by it.
type guesser struct {
	client netip.Addr
	user   string
}

// guesserOf takes the exit off the user's name, as it would make another guesser of each.
func guesserOf(client netip.Addr, user string) guesser {
	if i := strings.LastIndex(user, exitMark); i >= 0 {
		user = user[:i]
	}
	return guesser{clientKey(client), user}
}

// blocked reports whether a guesser has as many wrong logins waiting as it may have.
func (p *penalties) blocked(g guesser) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting[g] >= maxPenalty
}

// serve waits, or returns at once for one who is blocked.
func (p *penalties) serve(ctx context.Context, g guesser) {
	if !p.enter(g) {
		return
	}
	defer p.leave(g)
	t := time.NewTimer(penaltyTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (p *penalties) enter(g guesser) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[g] >= maxPenalty {
		return false
	}
	if p.waiting == nil {
		p.waiting = make(map[guesser]int)
	}
	p.waiting[g]++
	return true
}

func (p *penalties) leave(g guesser) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[g]--; p.waiting[g] == 0 {
		delete(p.waiting, g)
	}
}

// loginFrom is login for a client by its address: it slows guessing down, and counts what was wrong. It may take a second.
func (s *Server) loginFrom(ctx context.Context, client netip.Addr, user, password string) (name, exit string, ok bool) {
	g := guesserOf(client, user)
	if !s.penalties.blocked(g) {
		if name, exit, ok = s.login(user, password); ok {
			return name, exit, true
		}
	}
	s.badLogin(client)
	s.penalties.serve(ctx, g)
	return "", "", false
}

// badLogin counts a wrong login and tells of it.
func (s *Server) badLogin(client netip.Addr) {
	s.counters.badLogins.Add(1)
	s.lastFault.note(client, Target{}, errLogin)
	if s.cfg.Logger != nil {
		s.badLogins.note(s.cfg.Logger, s.cfg.Name, client)
	}
}

const networkBits = 64 // of the network that one IPv6 client has

// hasNetwork reports whether an IPv6 client has all addresses of its network: not one of a link or of a mesh (fd00::/8), which many
// share.
func hasNetwork(a netip.Addr) bool { return a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate() }

// clientKey is what limits of one client go by.
func clientKey(a netip.Addr) netip.Addr {
	if !hasNetwork(a) {
		return a
	}
	p, err := a.Prefix(networkBits)
	if err != nil {
		return a
	}
	return p.Addr()
}
