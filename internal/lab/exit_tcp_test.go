//go:build linux

package lab_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

const soon = 2 * time.Second // far more than a round trip here, far less than any timeout of TCP

// serveTCP accepts connections in a node until the test ends and gives each to serve, which need not close it.
func serveTCP(t testing.TB, node *lab.Node, addr string, serve func(c *net.TCPConn)) {
	t.Helper()
	l := node.Listen(t, addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
}

// httpServer answers every request with the same body.
func httpServer(t testing.TB, node *lab.Node, addr, body string) {
	t.Helper()
	serveTCP(t, node, addr, func(c *net.TCPConn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n"+body)
	})
}

func dialTCP(t testing.TB, node *lab.Node, f family, addr string) *net.TCPConn {
	t.Helper()
	c, err := node.Dial(f.tcp, addr, 5*time.Second)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

func TestTCPConnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		t.Run("refused port is refused at once", func(t *testing.T) {
			start := time.Now()
			_, err := w.C.Dial(f.tcp, lab.Port(lab.Server[f.i], 1), 5*time.Second)
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v, want connection refused", err)
			}
			if d := time.Since(start); d > soon {
				t.Errorf("took %v", d)
			}
		})
		t.Run("unreachable host fails at once", func(t *testing.T) {
			start := time.Now()
			_, err := w.C.Dial(f.tcp, lab.Port(lab.Unreachable[f.i], 80), 5*time.Second)
			if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v, want host unreachable, network unreachable or connection refused", err)
			}
			if d := time.Since(start); d > soon {
				t.Errorf("took %v", d)
			}
		})
		t.Run("silent target stays silent", func(t *testing.T) {
			_, err := w.C.Dial(f.tcp, lab.Port(lab.Silent[f.i], 80), 3*time.Second)
			if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("got %v, want a timeout", err)
			}
		})
	})
}

func TestTCPStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		t.Run("server speaks first", func(t *testing.T) {
			addr := lab.Port(lab.Server[f.i], 2001)
			serveTCP(t, w.S, addr, func(c *net.TCPConn) { c.Write([]byte("220 ready\r\n")); io.Copy(io.Discard, c) })
			c := dialTCP(t, w.C, f, addr)
			got := make([]byte, 11)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "220 ready\r\n" {
				t.Errorf("got %q, %v", got, err)
			}
		})
		t.Run("server closes first", func(t *testing.T) {
			addr := lab.Port(lab.Server[f.i], 2002)
			serveTCP(t, w.S, addr, func(c *net.TCPConn) { c.Write([]byte("bye")) })
			c := dialTCP(t, w.C, f, addr)
			c.SetReadDeadline(time.Now().Add(soon))
			if got, err := io.ReadAll(c); string(got) != "bye" || err != nil {
				t.Errorf("got %q, %v; want \"bye\" and the end of the stream", got, err)
			}
		})
		t.Run("client closes its half and the server still sends", func(t *testing.T) {
			addr := lab.Port(lab.Server[f.i], 2003)
			answer := random(t, 1<<20)
			serveTCP(t, w.S, addr, func(c *net.TCPConn) {
				question, _ := io.ReadAll(c)
				fmt.Fprintf(c, "%x\n", sha256.Sum256(question))
				c.Write(answer)
			})
			c := dialTCP(t, w.C, f, addr)
			question := random(t, 1<<20)
			c.Write(question)
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			want := append(fmt.Appendf(nil, "%x\n", sha256.Sum256(question)), answer...)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v; want %d bytes", len(got), err, len(want))
			}
		})
		t.Run("server closes its half and the client still sends", func(t *testing.T) {
			addr := lab.Port(lab.Server[f.i], 2004)
			sum := make(chan [32]byte, 1)
			serveTCP(t, w.S, addr, func(c *net.TCPConn) {
				c.Write([]byte("go"))
				c.CloseWrite()
				question, _ := io.ReadAll(c)
				sum <- sha256.Sum256(question)
			})
			c := dialTCP(t, w.C, f, addr)
			if got, err := io.ReadAll(c); string(got) != "go" || err != nil {
				t.Fatalf("got %q, %v", got, err)
			}
			question := random(t, 1<<20)
			if _, err := c.Write(question); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if got := receive(t, sum); got != sha256.Sum256(question) {
				t.Error("the server got something else")
			}
		})
		t.Run("server's reset reaches the client", func(t *testing.T) {
			addr := lab.Port(lab.Server[f.i], 2005)
			serveTCP(t, w.S, addr, func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 1))
				c.SetLinger(0)
			})
			c := dialTCP(t, w.C, f, addr)
			c.Write([]byte("x"))
			c.SetReadDeadline(time.Now().Add(soon))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want connection reset", err)
			}
		})
		t.Run("client's reset reaches the server", func(t *testing.T) {
			addr := lab.Port(lab.Server[f.i], 2006)
			got := make(chan error, 1)
			serveTCP(t, w.S, addr, func(c *net.TCPConn) {
				io.CopyN(c, c, 1)
				_, err := c.Read(make([]byte, 1))
				got <- err
			})
			c := dialTCP(t, w.C, f, addr)
			c.Write([]byte("x"))
			c.SetLinger(0)
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if err := receive(t, got); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want connection reset", err)
			}
		})
	})
}

func TestTCPBulk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		addr := lab.Port(lab.Server[f.i], 2010)
		serveTCP(t, w.S, addr, func(c *net.TCPConn) { io.Copy(c, c) })
		for _, row := range []struct{ streams, size int }{{1, 20 << 20}, {16, 4 << 20}} {
			t.Run(fmt.Sprintf("%d streams of %d MB there and back", row.streams, row.size>>20), func(t *testing.T) {
				results := make(chan error)
				for range row.streams {
					data, c := random(t, row.size), dialTCP(t, w.C, f, addr)
					go func() { c.Write(data); c.CloseWrite() }()
					go func() {
						h := sha256.New()
						n, err := io.Copy(h, c)
						if err == nil && [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
							err = fmt.Errorf("%d bytes came back, and not those sent", n)
						}
						results <- err
					}()
				}
				for range row.streams {
					if err := <-results; err != nil {
						t.Error(err)
					}
				}
			})
		}
		t.Run("a path with a smaller MTU behind the exit", func(t *testing.T) {
			addr := lab.Port(lab.NarrowHost[f.i], 2011)
			serveTCP(t, w.M, addr, func(c *net.TCPConn) { io.Copy(c, c) })
			c, data := dialTCP(t, w.C, f, addr), random(t, 1<<20)
			go func() { c.Write(data); c.CloseWrite() }()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d of %d bytes, %v", len(got), len(data), err)
			}
		})
	})
}

func TestTCPMSSFollowsTheTunnel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	tap := w.C.Tap(t, w.client.Dev)
	bothFamilies(t, func(t *testing.T, f family) {
		addr := lab.Port(lab.Server[f.i], 2020)
		serveTCP(t, w.S, addr, func(c *net.TCPConn) {})
		dialTCP(t, w.C, f, addr)
		want := [2]int{1420 - 40, 1420 - 60}[f.i]
		if mss, ok := synAckMSS(tap); !ok || mss != want {
			t.Errorf("SYN-ACK says MSS %d (seen: %t), want %d", mss, ok, want)
		}
	})
}

// TestTCPRealPrograms runs the programs that people will try first.
func TestTCPRealPrograms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AllowRouting = yes", "")
	bothFamilies(t, func(t *testing.T, f family) {
		t.Run("curl", func(t *testing.T) {
			lab.Need(t, "curl")
			addr := lab.Port(lab.Server[f.i], 2030)
			httpServer(t, w.S, addr, "hello through the exit\n")
			if got := w.C.Run(t, "curl", "-sS", "--max-time", "10", "http://"+addr+"/"); got != "hello through the exit\n" {
				t.Errorf("got %q", got)
			}
		})
		t.Run("nc -N", func(t *testing.T) {
			lab.Need(t, "nc")
			addr := lab.Port(lab.Server[f.i], 2031)
			serveTCP(t, w.S, addr, func(c *net.TCPConn) {
				question, _ := io.ReadAll(c)
				io.WriteString(c, strings.ToUpper(string(question)))
			})
			got, err := w.C.Exec("half close", "nc", "-N", "-w", "10", lab.Server[f.i], "2031")
			if err != nil || got != "HALF CLOSE" {
				t.Errorf("got %q, %v", got, err)
			}
		})
		t.Run("iperf3", func(t *testing.T) {
			lab.Need(t, "iperf3")
			w.S.Start(t, nil, "iperf3", "-s", "-1", "-p", fmt.Sprint(2032+f.i))
			lab.WaitFor(t, soon, "iperf3 to listen", func() bool { return w.S.Bound("tcp", 2032+f.i) })
			out := w.C.Run(t, "iperf3", "-c", lab.Server[f.i], "-p", fmt.Sprint(2032+f.i), "-t", "1", "--bidir")
			for line := range strings.Lines(out) {
				if strings.Contains(line, "receiver") {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	})
}

// random returns n bytes that no two calls share.
func random(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// receive takes one value from a channel within a time that only a fault exceeds.
func receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Error("timed out waiting for the other end")
	}
	return v
}
