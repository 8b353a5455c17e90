package dns

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/net/dns/dnsmessage"
)

func answered(t testing.TB, query *message, addr string) exchangeResult {
	t.Helper()
	m := parsed(t, answerTo(unpack(t, query.raw), record4(unpack(t, query.raw).Questions[0].Name.String(), addr, 60)))
	return exchangeResult{m: *m}
}

// Of equal questions in flight one is asked; each asker gets the answer under its own ID and spelling.
func TestEqualQuestionsAreAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		var asked atomic.Int32
		release := make(chan struct{})
		results := make(chan dnsmessage.Message)
		for i, name := range []string{"www.example.", "WWW.example.", "www.EXAMPLE."} {
			q := question(name, typeA)
			q.ID = uint16(i)
			query := parsed(t, q)
			go func() {
				r, err := f.do(t.Context(), query, false, func() (exchangeResult, error) {
					asked.Add(1)
					<-release
					return answered(t, query, "192.0.2.1"), nil
				})
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				r.m.raw[len(r.m.raw)-1]++ // the answer is the caller's own
				results <- unpack(t, r.m.raw)
			}()
		}
		synctest.Wait()
		close(release)
		seen := make(map[uint16]string)
		for range 3 {
			m := <-results
			seen[m.ID] = m.Questions[0].Name.String()
			if got := addresses(m); !slices.Equal(got, []string{"192.0.2.2"}) {
				t.Errorf("got %v", got)
			}
		}
		if asked.Load() != 1 || seen[0] != "www.example." || seen[1] != "WWW.example." || seen[2] != "www.EXAMPLE." {
			t.Errorf("asked %d times; answers to %v", asked.Load(), seen)
		}
		if len(f.asking) != 0 {
			t.Errorf("%d questions are left over", len(f.asking))
		}
	})
}

func TestQuestionsThatAreAskedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		var asked atomic.Int32
		release := make(chan struct{})
		option := dnsmessage.Option{Code: 10, Data: make([]byte, 8)}
		ask := func(q dnsmessage.Message, tcp bool) {
			query := parsed(t, q)
			go f.do(t.Context(), query, tcp, func() (exchangeResult, error) {
				asked.Add(1)
				<-release
				return answered(t, query, "192.0.2.1"), nil
			})
		}
		ask(question("www.example.", typeA), false)
		ask(question("www.example.", typeA), true)
		ask(question("www.example.", typeAAAA), false)
		ask(question("www.example.", typeA, edns(1232)), false)
		ask(question("www.example.", typeA, edns(4096)), false)
		ask(question("www.example.", typeA, edns(1232, option)), false)
		ask(question("www.example.", typeA, edns(1232, option)), false)
		synctest.Wait()
		if asked.Load() != 7 {
			t.Errorf("asked %d times, want 7", asked.Load())
		}
		close(release)
	})
}

// When the asker leaves on whose behalf the question was sent, another of those who wait asks; failures that are nobody's fault are shared.
func TestAnotherTakesOverWhenTheAskerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		query := parsed(t, question("www.example.", typeA))
		first, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := f.do(first, query, false, func() (exchangeResult, error) { <-first.Done(); return exchangeResult{}, first.Err() })
			left <- err
		}()
		synctest.Wait()

		gone, cancel := context.WithCancel(t.Context())
		impatient := make(chan error, 1)
		go func() {
			_, err := f.do(gone, query, false, func() (exchangeResult, error) { t.Error("asked by one who has left"); return exchangeResult{}, nil })
			impatient <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-impatient; !errors.Is(err, context.Canceled) {
			t.Errorf("waiting ended with %v", err)
		}

		failure := errors.New("no answer")
		var asked atomic.Int32
		rest := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := f.do(t.Context(), parsed(t, question("www.example.", typeA)), false, func() (exchangeResult, error) {
					asked.Add(1)
					synctest.Wait() // until the other waits again
					return exchangeResult{from: netip.AddrPort{}}, failure
				})
				rest <- err
			}()
		}
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("the first got %v", err)
		}
		for range 2 {
			if err := <-rest; err != failure {
				t.Errorf("got %v, want the failure", err)
			}
		}
		if asked.Load() != 1 {
			t.Errorf("asked %d times, want once", asked.Load())
		}
	})
}
