package relayd

import (
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Capabilities are those of a thread, so that a locked one can do without.
func TestAnotherPortWhereTheDefaultIsRefused(t *testing.T) {
	type result struct {
		port     uint16
		fellBack bool
		err      error
		hint     error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var r result
		if r.err = dropNetBindService(); r.err == nil {
			list, fellBack, err := listenRelay(nil)
			if r.fellBack, r.err = fellBack, err; err == nil {
				r.port = addressOf(list[0]).Port()
			}
			closeAll(list)
			list, r.hint = listenAll(listenAddrs(t, "127.0.0.1:443"), "ListenHTTP")
			closeAll(list)
		}
		done <- r
	}()
	r := <-done
	switch {
	case r.err != nil && strings.Contains(r.err.Error(), "another program uses"):
		t.Skipf("SKIP a well-known port is in use here: %v", r.err)
	case r.err != nil:
		t.Fatal(r.err)
	case r.port == defaultPort && !r.fellBack:
		t.Skip("SKIP everybody may bind port 443 here")
	}
	if r.port != fallbackPort || !r.fellBack {
		t.Errorf("port %d, fell back %v", r.port, r.fellBack)
	}
	if r.hint == nil || !strings.Contains(r.hint.Error(), "need a privilege; lower that by sysctl, or set a higher port by ListenHTTP") {
		t.Errorf("where the port was asked for: %v", r.hint)
	}
}

func dropNetBindService() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
	return unix.Capset(&header, &data[0])
}
