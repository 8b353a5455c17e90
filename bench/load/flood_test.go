//go:build linux

package load

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestFloodCountsEveryDatagram(t *testing.T) {
	v4, v6 := startServer(t, "127.0.0.1:0"), ""
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close()
		v6 = startServer(t, "[::1]:0")
	}
	for _, f := range []Flood{
		{To: v4, Direction: Up, Size: 64, Rate: 20000},
		{To: v4, Direction: Down, Size: 64, Rate: 20000},
		{To: v4, Direction: Up, Size: 1200, Segments: 1, Rate: 5000},
		{To: v4, Direction: Down, Size: FloodMinSize, Segments: maxSegments, Rate: 20000},
		{To: v6, Direction: Up, Size: 1200, Rate: 5000},
		{To: v6, Direction: Down, Size: 100, Rate: 5000},
	} {
		t.Run(fmt.Sprintf("%s, %d bytes, %d in a message, %s", f.Direction, f.Size, f.Segments, f.To), func(t *testing.T) {
			if f.To == "" {
				t.Skip("there is no IPv6")
			}
			f.Warmup, f.Length = 100*time.Millisecond, 300*time.Millisecond
			r, err := f.Run(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if r.Received+r.Lost != r.Sent || r.Lost > excused(r) || r.Duplicates+r.Reordered+r.Corrupt != 0 || r.Direction != f.Direction || r.Size != f.Size {
				t.Errorf("got %+v", r)
			}
			// How much it is depends on what else the machine does, but never is it more than was asked for.
			if most := f.Rate*0.4*1.01 + maxSegments; float64(r.Sent) > most || r.PerSecond <= 0 || r.PerSecond*0.3 > float64(r.Received)*1.0001 {
				t.Errorf("%d were sent, at most %.0f are right; %.0f per second of %d arrived", r.Sent, most, r.PerSecond, r.Received)
			}
			if want := r.PerSecond * float64(f.Size) * 8 / 1e6; math.Abs(r.Mbps-want) > 1e-9 {
				t.Errorf("%v Mbit/s, want %v", r.Mbps, want)
			}
		})
	}
}

// excused is how many datagrams may be lost since the machine has other work, and gives a socket little room.
func excused(r FloodResult) int64 { return r.SocketDrops * maxSegments }

func TestFloodWithoutARate(t *testing.T) {
	to := startServer(t, "127.0.0.1:0")
	for _, d := range []Direction{Up, Down} {
		r, err := Flood{To: to, Direction: d, Length: 200 * time.Millisecond}.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if r.Received == 0 || r.Received > r.Sent || r.Lost != r.Sent-r.Received || r.Segments != 16 || r.Corrupt != 0 || r.Duplicates != 0 {
			t.Errorf("%s: got %+v", d, r)
		}
	}
}

func TestFloodsAtTheSameTimeDoNotCountEachOther(t *testing.T) {
	to := startServer(t, "127.0.0.1:0")
	results := make(chan error)
	for _, d := range []Direction{Up, Down, Up, Down} {
		go func() {
			r, err := Flood{To: to, Direction: d, Rate: 5000, Length: 200 * time.Millisecond}.Run(context.Background())
			if err == nil && r.Lost > excused(r) {
				err = fmt.Errorf("%s: got %+v", d, r)
			}
			results <- err
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

func TestFloodRefusesWhatIsImpossible(t *testing.T) {
	for want, f := range map[string]Flood{
		"bytes":           {Size: FloodMinSize - 1},
		"in one message":  {Size: 1200, Segments: 60},
		"1 to 64":         {Segments: 65},
		"direction":       {Direction: "sideways"},
		"not negative":    {Rate: -1},
		"an IP address":   {To: "localhost:1"},
		"65507 are":       {Size: 70000},
		"-1 datagrams of": {Segments: -1},
	} {
		if _, err := f.Run(context.Background()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got error %v, want one with %q", f, err, want)
		}
	}
}

// A server that promises a port and is silent there: what the client is told decides.
func TestFloodEndsWhenItIsCancelled(t *testing.T) {
	hole := udpSocket(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	to := served(t, func(c *net.TCPConn) {
		b := bufio.NewReader(c)
		b.ReadString('\n')
		json.NewEncoder(c).Encode(floodMessage{Port: portOf(hole).Port()})
		hole.Read(make([]byte, 100))
		cancel()
		io.Copy(io.Discard, b)
	})
	if _, err := (Flood{To: to}).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
}

func TestFloodTellsWhatTheServerSays(t *testing.T) {
	to := served(t, func(c *net.TCPConn) {
		b := bufio.NewReader(c)
		b.ReadString('\n')
		json.NewEncoder(c).Encode(floodMessage{Error: "no room"})
		io.Copy(io.Discard, b)
	})
	if _, err := (Flood{To: to}).Run(context.Background()); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("got error %v", err)
	}
}

func TestFloodServerRefusesNonsense(t *testing.T) {
	to := startServer(t, "127.0.0.1:0")
	for request, want := range map[string]string{
		`{"session":"0001020304050607"}`:                                     "what flood",
		`{"flood":{"size":64},"session":"00"}`:                               "what flood",
		`{"flood":{"size":1},"session":"0001020304050607"}`:                  "bytes",
		`{"flood":{"size":64,"segments":9000},"session":"0001020304050607"}`: "in one message",
		`{"flood":{"size":64},"session":"000102030405060708"}`:               "what flood",
		`{"flood":{"size":64},"session":"0001020304050607"}`:                 "",
	} {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "%c%s\n", floodService, request)
		var m floodMessage
		if err := json.NewDecoder(c).Decode(&m); err != nil || !strings.Contains(m.Error, want) || (m.Port == 0) != (want != "") {
			t.Errorf("%s: got %+v, %v", request, m, err)
		}
		c.Close()
	}
}

// What opens the way, or its answer, may be lost: the client asks again, and the server answers again.
func TestFloodOpensTheWayInSpiteOfLoss(t *testing.T) {
	server := udpSocket(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 100)
		for range 2 { // the first is lost
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			server.WriteToUDPAddrPort([]byte("nonsense"), from)
			if b[numberAt] != 0xff {
				t.Errorf("got % x", b[:n])
			}
		}
		n, from, _ := server.ReadFromUDPAddrPort(b)
		server.WriteToUDPAddrPort(b[:n], from)
	}()
	s, err := openSocket(netip.AddrPort{}, portOf(server))
	if err != nil {
		t.Fatal(err)
	}
	defer s.conn.Close()
	if err := greet(context.Background(), s, testSession); err != nil {
		t.Error(err)
	}
	<-done
}

func TestFloodServerAnswersEveryHello(t *testing.T) {
	to := startServer(t, "127.0.0.1:0")
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	talk := floodTalk{c, json.NewDecoder(c)}
	fmt.Fprintf(c, "%c", floodService)
	if err := talk.say(floodMessage{Flood: &Flood{Size: 64, Direction: Down, Rate: 1000, Length: 50 * time.Millisecond}, Session: hex.EncodeToString(testSession[:])}); err != nil {
		t.Fatal(err)
	}
	m, err := talk.hear(talkLimit)
	if err != nil {
		t.Fatal(err)
	}
	client := udpSocket(t)
	at := netip.AddrPortFrom(netip.MustParseAddrPort(to).Addr(), m.Port)
	b := make([]byte, 100)
	for range 3 {
		client.WriteToUDPAddrPort([]byte("of somebody else"), at)
		client.WriteToUDPAddrPort(testSession.hello(), at)
		if n, _, err := client.ReadFromUDPAddrPort(b); err != nil || !testSession.isHello(b[:n]) {
			t.Fatalf("got % x, %v", b[:n], err)
		}
	}
	if err := talk.say(floodMessage{Start: true}); err != nil {
		t.Fatal(err)
	}
	if n, _, err := client.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != string(numbered(64, 0)) {
		t.Errorf("got % x, %v", b[:n], err)
	}
	if m, err = talk.hear(talkLimit); err != nil || m.Sent == nil || m.Sent.Sent == 0 {
		t.Errorf("got %+v, %v", m, err)
	}
}
