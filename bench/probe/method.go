package probe

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"culvert.dev/culvert/bench/iperf3"
)

const (
	idleTime  = 2 * time.Second
	echoEvery = 20 * time.Millisecond
	// A stock server denies connections in the loop that carries its test, one at a time.
	setupEvery = 100 * time.Millisecond

	findRounds = 3 // attempts to find an answer
	findTime   = time.Second
	findGrace  = 100 * time.Millisecond // for the better method, once the other has answered
)

// Names of methods.
const (
	methodUDP  = "udp echo"
	methodICMP = "icmp echo"
	methodTCP  = "tcp set-up"
)

// asker finds out what answers at the target. The echo of our own server is preferred, as it goes the way of programs' data.
func (r *run) asker(ctx context.Context) (*asker, error) {
	at, err := echoAddress(r.order.Target)
	if err != nil {
		return nil, err
	}
	conn, err := r.way.Network.DialContext(ctx, "udp", at)
	if err != nil {
		return nil, err
	}
	echo := newEchoClient(conn)
	udp := &asker{name: methodUDP, every: echoEvery, ask: echo.ask, close: echo.close}
	icmp := &asker{name: methodICMP, every: echoEvery, close: func() {}}
	if to, ok := conn.RemoteAddr().(*net.UDPAddr); ok && r.way.Echo != nil {
		addr := to.AddrPort().Addr().Unmap()
		icmp.ask = func(ctx context.Context) (time.Duration, error) { return r.way.Echo(ctx, addr) }
	}
	switch found := find(ctx, udp, icmp); found {
	case udp:
		return udp, nil
	case icmp:
		echo.close()
		return icmp, nil
	}
	echo.close()
	return &asker{name: methodTCP, every: setupEvery, ask: r.setup, close: func() {}}, nil
}

// echoTarget is the address of the echo beside our own server; "" where none answers.
func (r *run) echoTarget(ctx context.Context) (string, error) {
	at, err := echoAddress(r.order.Target)
	if err != nil {
		return "", err
	}
	conn, err := r.way.Network.DialContext(ctx, "udp", at)
	if err != nil {
		return "", err
	}
	echo := newEchoClient(conn)
	defer echo.close()
	for range findRounds {
		within, cancel := context.WithTimeout(ctx, findTime/findRounds)
		_, err := echo.ask(within)
		cancel()
		if err == nil {
			return at, nil
		}
	}
	return "", nil
}

func echoAddress(target string) (string, error) {
	host, port, err := splitTarget(target)
	return net.JoinHostPort(host, strconv.Itoa(int(EchoPort(port)))), err
}

// find returns the first of two that is answered, or nil. better has a little more time; other may have no function.
func find(ctx context.Context, better, other *asker) *asker {
	for range findRounds {
		round, cancel := context.WithTimeout(ctx, findTime)
		try := func(a *asker) <-chan bool {
			c := make(chan bool, 1)
			go func() {
				_, err := a.ask(round)
				c <- err == nil
			}()
			return c
		}
		first, second := try(better), (<-chan bool)(nil)
		if other.ask != nil {
			second = try(other)
		}
		found := findRound(first, second, better, other)
		cancel()
		if found != nil || ctx.Err() != nil {
			return found
		}
	}
	return nil
}

func findRound(first, second <-chan bool, better, other *asker) (found *asker) {
	var grace <-chan time.Time
	for first != nil || second != nil {
		select {
		case ok := <-first:
			if ok {
				return better
			}
			first = nil
		case ok := <-second:
			second = nil
			if ok {
				found, grace = other, time.After(findGrace)
			}
		case <-grace:
			return found
		}
	}
	return found
}

// idle measures round trips while there is no load.
func (r *run) idle(ctx context.Context, a *asker) (l Latency, err error) {
	watch := func(ctx context.Context) {
		stop := make(chan struct{})
		defer time.AfterFunc(idleTime, func() { close(stop) }).Stop()
		l = a.watch(ctx, stop)
	}
	if a.name == methodTCP {
		err = r.hold(ctx, idleTime, watch)
	} else {
		watch(ctx)
	}
	if err == nil && ctx.Err() != nil {
		err = iperf3.ErrInterrupted
	}
	return l, err
}

// setup makes one connection that the server denies, and returns how long it took to have it.
func (r *run) setup(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	c, err := r.dialTCP(ctx)
	took := time.Since(began)
	if err == nil {
		err = beDenied(ctx, c)
	}
	return took, err
}

func (r *run) dialTCP(ctx context.Context) (net.Conn, error) {
	return r.way.Network.DialContext(ctx, "tcp", r.order.Target)
}

// splitTarget takes a complete target apart. A port by name is none that an echo could be beside.
func splitTarget(target string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(target)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", 0, &net.AddrError{Err: "the port is not a number", Addr: target}
	}
	return host, uint16(n), nil
}

// Complete gives a target the port that it lacks.
func Complete(target string, port uint16) string {
	if a, err := netip.ParseAddr(target); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	if _, _, err := net.SplitHostPort(target); err == nil {
		return target
	}
	host := target
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
