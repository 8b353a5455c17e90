//go:build linux

package lab_test

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestReload changes the configuration of a running node. Flows that are still permitted go on, others are cut, and a
// file with an error changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	productOnly(t, "wg setconf is not what is tested")
	w := newWorld(t, "AllowRouting = yes", "AllowRouting = yes")
	w.StockClient(t, w.P, w.keys.P, w.exit.Key)
	w.connect(t, w.P)
	w.echoServers(t)
	open := func(client *lab.Node) *net.TCPConn {
		c := dialTCP(t, client, families[0], lab.Port(lab.Server[0], 7))
		if err := turn(c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c, p := open(w.C), open(w.P)
	reload := func() (string, error) { return w.exit.Client("reload") }

	good, err := os.ReadFile(w.exit.Conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("a bad file changes nothing", func(t *testing.T) {
		if err := os.WriteFile(w.exit.Conf, append([]byte("[Interface]\nNonsense = yes\n"), good...), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := reload(); err == nil {
			t.Errorf("reload succeeded: %s", out)
		}
		if err := turn(c); err != nil {
			t.Errorf("an established connection: %v", err)
		}
		w.works(t, w.C, families[0])
	})
	t.Run("a withdrawn permission cuts its flows and no others", func(t *testing.T) {
		changed := w.config
		changed.Peers = append([]lab.ExitPeer(nil), w.config.Peers...)
		changed.Peers[0].Options = ""
		w.exit.WriteConf(t, changed)
		if out, err := reload(); err != nil {
			t.Fatalf("reload: %v: %s", err, out)
		}
		c.SetDeadline(time.Now().Add(soon))
		if err := turn(c); err == nil {
			t.Error("the connection of the peer that may no longer route goes on")
		}
		if _, err := w.C.Dial("tcp4", lab.Port(lab.Server[0], 7), soon); err == nil {
			t.Error("the peer that may no longer route opened a connection")
		}
		if err := turn(p); err != nil {
			t.Errorf("the other peer's connection: %v", err)
		}
	})
	t.Run("SIGHUP reloads too", func(t *testing.T) {
		w.exit.WriteConf(t, w.config)
		if err := w.exit.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		lab.WaitFor(t, 5*time.Second, "the permission to be back", func() bool {
			c, err := w.C.Dial("tcp4", lab.Port(lab.Server[0], 7), time.Second)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		if err := turn(p); err != nil {
			t.Errorf("the other peer's connection: %v", err)
		}
	})
}

// turn sends a byte to an echo server and reads it back.
func turn(c *net.TCPConn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}
