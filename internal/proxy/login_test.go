package proxy

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLogin(t *testing.T) {
	users := []User{{"alice", "secret"}, {"a+exit+b", "odd"}, {"nopass", ""}}
	for _, c := range []struct {
		users          []User
		user, password string
		name, exit     string
		ok             bool
	}{
		{nil, "", "", "", "", true},
		{nil, "somebody", "x", "", "", true},
		{nil, "exit+fra", "x", "", "fra", true},
		{nil, "exit+Fra.mesh", "", "", "Fra.mesh", true},
		{nil, "exit+", "", "", "", false},
		{nil, "exit+a b", "", "", "", false},
		{nil, "exit+a\x00", "", "", "", false},
		{users, "", "", "", "", false},
		{users, "alice", "secret", "alice", "", true},
		{users, "alice", "Secret", "", "", false},
		{users, "alice", "", "", "", false},
		{users, "alic", "secret", "", "", false},
		{users, "Alice", "secret", "", "", false},
		{users, "nopass", "", "nopass", "", true},
		{users, "alice", "odd", "", "", false},
		{users, "alice+exit+fra", "secret", "alice", "fra", true},
		{users, "alice+exit+", "secret", "", "", false},
		{users, "alice+exit+fra", "wrong", "", "", false},
		{users, "exit+fra", "secret", "", "", false},
		{users, "+exit+fra", "", "", "", false},
		{users, "a+exit+b", "odd", "a+exit+b", "", true}, // the whole is a user
		{users, "a+exit+b+exit+fra", "odd", "a+exit+b", "fra", true},
		{[]User{{"", ""}}, "+exit+fra", "", "", "", false},
	} {
		s := &Server{accounts: newAccounts(c.users)}
		name, exit, ok := s.login(c.user, c.password)
		if !ok {
			name, exit = "", ""
		}
		if name != c.name || exit != c.exit || ok != c.ok {
			t.Errorf("%d users, %q %q: got %q, %q, %v; want %q, %q, %v", len(c.users), c.user, c.password, name, exit, ok, c.name, c.exit, c.ok)
		}
	}
}

// TestGuessingIsSlow: a client that tries a thousand passwords at once learns of a few each second, while another client is
// not held up.
func TestGuessingIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{accounts: newAccounts(alice)}
		ctx := context.Background()
		guesser, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")
		begin := time.Now()
		var mu sync.Mutex
		slow := 0
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				addr := guesser.As16()
				addr[15] = byte(i) // all of one network
				if _, _, ok := s.loginFrom(ctx, netip.AddrFrom16(addr), "alice", "guess"); ok {
					t.Error("a wrong password is right")
				}
				mu.Lock()
				defer mu.Unlock()
				if time.Since(begin) == penaltyTime {
					slow++
				}
			})
		}
		synctest.Wait()
		if _, _, ok := s.loginFrom(ctx, guesser, "alice", "secret"); ok {
			t.Error("a guess more is looked at")
		}
		if _, _, ok := s.loginFrom(ctx, other, "alice", "secret"); !ok {
			t.Error("another client is held up")
		}
		wg.Wait()
		if slow != maxPenalty {
			t.Errorf("%d guesses were looked at, want %d", slow, maxPenalty)
		}
		if _, _, ok := s.loginFrom(ctx, guesser, "alice", "secret"); !ok {
			t.Error("the client is held up for longer")
		}
		if len(s.penalties.waiting) != 0 {
			t.Errorf("%v is left", s.penalties.waiting)
		}
		if got := s.counters.badLogins.Load(); got != 1001 {
			t.Errorf("%d bad logins", got)
		}
	})
}

func FuzzLogin(f *testing.F) {
	f.Add("alice+exit+fra", "secret")
	f.Add("exit+fra", "")
	f.Fuzz(func(t *testing.T, user, password string) {
		open, closed := &Server{}, &Server{accounts: newAccounts(alice)}
		if _, exit, ok := open.login(user, password); ok && exit != "" && user != "exit+"+exit {
			t.Errorf("%q: exit %q", user, exit)
		}
		name, exit, ok := closed.login(user, password)
		if !ok {
			return
		}
		known := (name == "alice" && password == "secret") || (name == "bob" && password == "pass")
		if !known || (user != name && user != name+"+exit+"+exit) {
			t.Errorf("%q %q is %q, %q", user, password, name, exit)
		}
	})
}
