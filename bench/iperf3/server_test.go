package iperf3

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// rawClient speaks the protocol by hand.
type rawClient struct {
	*control
	t       *testing.T
	cookie  cookie
	address string
}

func (s *serving) raw(t *testing.T) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &rawClient{&control{conn, 5 * time.Second}, t, newCookie(), s.address}
}

// until goes on to a state, with one stream if the state is past its connection.
func (r *rawClient) until(s state, params string) (stream net.Conn) {
	r.t.Helper()
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	must(r.write(r.cookie[:]))
	must(r.expect(paramExchange))
	if s == paramExchange {
		return nil
	}
	must(r.write(append(binary.BigEndian.AppendUint32(nil, uint32(len(params))), params...)))
	must(r.expect(createStreams))
	if s == createStreams {
		return nil
	}
	stream, err := net.Dial("tcp", r.address)
	must(err)
	r.t.Cleanup(func() { stream.Close() })
	_, err = stream.Write(r.cookie[:])
	must(err)
	must(r.expect(testStart))
	must(r.expect(testRunning))
	if s == testRunning {
		return stream
	}
	must(r.writeState(testEnd))
	must(r.expect(exchangeResults))
	return stream
}

func TestServerSurvivesClientsThatVanish(t *testing.T) {
	settled(t)
	s := serve(t, Server{})
	for name, leave := range map[string]func(r *rawClient){
		"before the cookie":         func(r *rawClient) {},
		"within the cookie":         func(r *rawClient) { r.write(r.cookie[:5]) },
		"before the parameters":     func(r *rawClient) { r.until(paramExchange, "") },
		"within the parameters":     func(r *rawClient) { r.until(paramExchange, ""); r.write([]byte{0, 0, 1, 0, '{'}) },
		"before the streams":        func(r *rawClient) { r.until(createStreams, `{"tcp":true,"time":60}`) },
		"before the datagrams":      func(r *rawClient) { r.until(createStreams, `{"udp":true,"time":60}`) },
		"with one stream missing":   func(r *rawClient) { r.until(createStreams, `{"tcp":true,"parallel":2}`); r.dialStream().Close() },
		"while it sends":            func(r *rawClient) { r.until(testRunning, `{"tcp":true,"time":60}`) },
		"while it receives":         func(r *rawClient) { r.until(testRunning, `{"tcp":true,"time":60,"reverse":true}`) },
		"before the results":        func(r *rawClient) { r.until(exchangeResults, `{"tcp":true,"time":60}`) },
		"within the results":        func(r *rawClient) { r.until(exchangeResults, `{"tcp":true}`); r.write([]byte{0, 0, 1, 0, '{'}) },
		"after having sent results": func(r *rawClient) { r.until(exchangeResults, `{"tcp":true}`); r.writeJSON(goodResults) },
	} {
		r := s.raw(t)
		leave(r)
		r.Close()
		for deadline := time.Now().Add(5 * time.Second); ; { // the server needs a moment to notice
			_, err := s.client(Params{Blocks: 1}).Run(t.Context())
			if err == nil {
				break
			}
			if !errors.Is(err, ErrBusy) || time.Now().After(deadline) {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
}

var goodResults = wireResults{Streams: []wireStreamResult{{ID: 1}}}

func (r *rawClient) dialStream() net.Conn {
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.Write(r.cookie[:])
	return c
}

func TestSecondClientIsTurnedAway(t *testing.T) {
	s := serve(t, Server{})
	first := s.raw(t)
	first.until(testRunning, `{"tcp":true,"time":60}`)
	if _, err := s.client(Params{}).Run(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	late := s.raw(t) // with the cookie of the test that runs, which has its streams
	late.write(first.cookie[:])
	if got, err := late.readState(false); err == nil && got != accessDenied {
		t.Errorf("a stream that comes too late gets %v", got)
	}
	late.Close()
	first.Close()
	s.outcome(t)
	s.works(t)
}

// TestDenialComesAtOnce while a test goes on, and for a probe at any time.
func TestDenialComesAtOnce(t *testing.T) {
	s := serve(t, Server{})
	denied := func(what, greeting string) {
		t.Helper()
		r := s.raw(t)
		defer r.Close()
		began := time.Now()
		r.write([]byte(greeting))
		if got, err := r.readState(false); err != nil || got != accessDenied {
			t.Errorf("%s gets %v, %v", what, got, err)
		}
		if took := time.Since(began); took > endPause/2 {
			t.Errorf("%s waits for %v", what, took)
		}
	}
	denied("a probe of an idle server", ProbeCookie)
	first := s.raw(t)
	first.until(testRunning, `{"tcp":true,"time":60}`)
	other := newCookie()
	denied("another client", string(other[:]))
	denied("a probe", ProbeCookie)
	denied("a stream that comes too late", string(first.cookie[:]))
	first.Close()
	s.outcome(t)
	s.works(t)
}

// TestClientsWaitForTheEndOfATest: one of them is next, but none that has gone meanwhile or is no client.
func TestClientsWaitForTheEndOfATest(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{})
	first := s.raw(t)
	first.until(exchangeResults, `{"tcp":true,"time":60}`)
	gone, hasty, next := s.raw(t), s.raw(t), s.raw(t)
	gone.write(gone.cookie[:])
	gone.Close()
	hasty.write(append(hasty.cookie[:], "data"...))
	if got, err := hasty.readState(false); err == nil && got != accessDenied {
		t.Errorf("a client that does not wait gets %v", got)
	}
	next.write(next.cookie[:])
	probe := s.raw(t)
	probe.write([]byte(ProbeCookie))
	first.writeJSON(goodResults)
	var w wireResults
	first.readJSON(&w, maxResultsSize)
	first.expect(displayResults)
	first.writeState(done)
	if err := s.outcome(t); err != nil {
		t.Error(err)
	}
	if err := next.expect(paramExchange); err != nil {
		t.Errorf("the client that waited: %v", err)
	}
	if got, err := probe.readState(false); err != nil || got != accessDenied {
		t.Errorf("a probe that waited gets %v, %v", got, err)
	}
}

// TestOneOffIsOneTest though another client waits for its end.
func TestOneOffIsOneTest(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{OneOff: true})
	first, next := s.raw(t), s.raw(t)
	first.until(exchangeResults, `{"tcp":true,"time":60}`)
	next.write(next.cookie[:])
	first.Close()
	if got, err := next.readState(false); err == nil && got != accessDenied {
		t.Errorf("another client gets %v", got)
	}
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
	s.ended <- nil
}

// TestDataWithoutEndDoesNotHoldAServer: after its TEST_END a client goes on to send what the test is short of.
func TestDataWithoutEndDoesNotHoldAServer(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{})
	r := s.raw(t)
	stream := r.until(testRunning, `{"tcp":true,"num":1e15}`)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for b := make([]byte, 1); ; time.Sleep(time.Millisecond) { // a pace, not a time to wait
			if _, err := stream.Write(b); err != nil {
				return
			}
		}
	}()
	r.writeState(testEnd)
	s.stop()
	select {
	case <-s.ended:
		s.ended <- nil
	case <-time.After(restTime / 2):
		t.Error("the server does not end")
	}
	stream.Close()
	<-sent
}

func TestRestIsAwaitedForALimitedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := newTest(Params{Protocol: "tcp", Length: 1, Streams: 1, Bytes: maxBytes}, true)
		trickle := &stream{id: 1}
		run.streams = []*stream{trickle}
		stop := make(chan struct{})
		go func() {
			for tick := time.NewTicker(restPause / 2); ; {
				select {
				case <-tick.C:
					trickle.moved(1, 0)
				case <-stop:
					return
				}
			}
		}()
		began := time.Now()
		run.awaitRest(t.Context())
		if took := time.Since(began); took < restTime || took > restTime+restPause {
			t.Errorf("it took %v", took)
		}
		close(stop)
	})
}

func TestServerEndsTestsOfSilentClients(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{Idle: 200 * time.Millisecond})
	r := s.raw(t)
	r.until(testRunning, `{"tcp":true,"time":60}`)
	if err := s.outcome(t); !errors.Is(err, ErrIdle) {
		t.Errorf("got %v", err)
	}
	if err := r.expect(testEnd); !errors.Is(err, ErrServerTerminated) {
		t.Errorf("the client is told %v", err)
	}
}

func TestServerRefuses(t *testing.T) {
	s := serve(t, Server{MaxTime: 5 * time.Second, MaxRate: 20e6})
	for name, c := range map[string]struct {
		p    Params
		code int
	}{
		"long tests":           {Params{Time: 6 * time.Second, Rate: 1e6}, codeDuration},
		"omitted time as well": {Params{Time: 5 * time.Second, Omit: time.Second, Rate: 1e6}, codeDuration},
		"high rates":           {Params{Time: time.Second, Rate: 21e6}, codeTotalRate},
		"high rates in all":    {Params{Time: time.Second, Rate: 6e6, Bidir: true, Streams: 2}, codeTotalRate},
		"huge rates in all":    {Params{Time: time.Second, Rate: 1 << 61, Bidir: true, Streams: 128}, codeTotalRate},
		"no limit":             {Params{Time: time.Second}, codeTotalRate},
	} {
		var e *ServerError
		if _, err := s.client(c.p).Run(t.Context()); !errors.As(err, &e) || e.Code != c.code {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := s.client(Params{Blocks: 1, Rate: 10e6}).Run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestUnlimitedDurationEndsAtTheLimit(t *testing.T) {
	run := newTest(Params{Protocol: "tcp", Length: 1, Streams: 1}, true)
	run.begin()
	if _, err := run.run(t.Context(), make(chan heard), 20*time.Millisecond); !errors.Is(err, errTimeUp) {
		t.Errorf("got %v", err)
	}
	run.close()
}

func TestHostileMessages(t *testing.T) {
	s := serve(t, Server{})
	for name, params := range map[string]string{"no JSON": "{{{{", "an array": "[]", "empty": ""} {
		r := s.raw(t)
		r.write(r.cookie[:])
		r.expect(paramExchange)
		r.write(append(binary.BigEndian.AppendUint32(nil, uint32(len(params))), params...))
		if got, err := r.readState(false); err == nil && got != serverError {
			t.Errorf("%s: got %v", name, got)
		}
		r.Close()
	}
	r := s.raw(t)
	r.until(exchangeResults, `{"tcp":true,"get_server_output":1}`)
	r.writeJSON(wireResults{Streams: []wireStreamResult{{ID: 99}}})
	if err := s.outcome(t); err == nil || !strings.Contains(err.Error(), "lack stream 1") {
		t.Errorf("results of other streams: %v", err)
	}
	r = s.raw(t)
	r.until(testRunning, `{"tcp":true}`)
	r.writeState(createStreams)
	if err := s.outcome(t); err == nil || !strings.Contains(err.Error(), "got CREATE_STREAMS") {
		t.Errorf("a state that makes no sense: %v", err)
	}
	r.Close()
	s.works(t)
}

func TestOneOff(t *testing.T) {
	s := serve(t, Server{OneOff: true})
	s.raw(t).Close() // no test
	s.works(t)
	select {
	case err := <-s.ended:
		if err != nil {
			t.Error(err)
		}
		s.ended <- nil
	case <-time.After(5 * time.Second):
		t.Error("the server goes on")
	}
}

func TestServerThatNobodyComesToEnds(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{WaitIdle: 300 * time.Millisecond})
	select {
	case err := <-s.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the server goes on")
	}
}

func TestClientThatIsInterruptedHasResults(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]Params{"TCP": {}, "reverse": {Reverse: true}, "UDP": {Protocol: "udp", Bidir: true, Rate: 10e6, Length: 1000}} {
		s := serve(t, Server{})
		p.Time, p.Interval = time.Minute, 100*time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		c := s.client(p)
		c.OnInterval = func(Interval) { cancel() }
		r, err := c.Run(ctx)
		if !errors.Is(err, ErrInterrupted) || r == nil || r.Error == "" {
			t.Fatalf("%s: got %v, %v", name, r, err)
		}
		if got := r.End.SumSent.Bytes + r.End.SumReceived.Bytes; got == 0 || len(r.Intervals) == 0 {
			t.Errorf("%s: the result is empty: %+v", name, r.End)
		}
		if err := s.outcome(t); !errors.Is(err, ErrClientTerminated) {
			t.Errorf("%s: the server: %v", name, err)
		}
		s.works(t)
	}
}

func TestClientThatIsInterruptedBeforeItIsConnected(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := Client{Params: Params{Target: "127.0.0.1:9"}}
	if r, err := c.Run(ctx); r != nil || !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestClientThatIsInterruptedBeforeTheTest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			io.ReadFull(c, make([]byte, cookieSize))
			cancel()
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	c := Client{Params: Params{Target: l.Addr().String()}}
	if r, err := c.Run(ctx); r != nil || !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestServerThatStopsTellsItsClient(t *testing.T) {
	t.Parallel()
	s := serve(t, Server{})
	c := s.client(Params{Time: time.Minute, Interval: 100 * time.Millisecond})
	c.OnInterval = func(Interval) { s.stop() }
	r, err := c.Run(t.Context())
	if !errors.Is(err, ErrServerTerminated) || r == nil || r.End.SumSent.Bytes == 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	if err := s.outcome(t); !errors.Is(err, ErrServerTerminated) {
		t.Errorf("the server: %v", err)
	}
}

// TestOnlyTheClientOpensDatagramStreams: otherwise a flood could be had for somebody else.
func TestOnlyTheClientOpensDatagramStreams(t *testing.T) {
	s := serve(t, Server{})
	r := s.raw(t)
	r.until(createStreams, `{"udp":true,"reverse":true,"time":5,"bandwidth":1000000,"len":100}`)
	other, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}, net.UDPAddrFromAddrPort(r.RemoteAddr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		t.Skipf("no second loopback address: %v", err)
	}
	defer other.Close()
	other.Write(connectMessage())
	own, err := net.Dial("udp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	own.Write([]byte("no opening"))
	own.Write(connectMessage()) // behind the others in the server's queue
	b := make([]byte, 100)
	own.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := own.Read(b); err != nil || !isConnectAnswer(b[:n]) {
		t.Fatalf("the client gets %q, %v", b[:n], err)
	}
	if err := r.expect(testStart); err != nil {
		t.Fatal(err)
	}
	other.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := other.Read(b); err == nil {
		t.Errorf("another host gets %q", b[:n])
	}
}

func TestAddressInUse(t *testing.T) {
	s := serve(t, Server{})
	again := Server{Address: s.address}
	if err := again.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "iperf3 server "+s.address) {
		t.Errorf("got %v", err)
	}
	port, err := net.ListenPacket("udp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	var e *ServerError
	if _, err := s.client(Params{Protocol: "udp"}).Run(t.Context()); !errors.As(err, &e) || e.Code != codeStreamListen || e.Errno == 0 {
		t.Errorf("the UDP port is taken: %v", err)
	}
}
