package tunnel

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inNamespace = "CULVERT_TEST_IN_NAMESPACE"

// runInNamespace runs the calling test again in a network namespace of its own and returns true there. Outside it reports
// the result and returns false.
func runInNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Skipf("SKIP: no unprivileged network namespace here: %v", err)
	}
	if err != nil {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	return false
}

// setLoopback brings lo up with an MTU.
func setLoopback(t *testing.T, mtu uint32) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
	ifr.SetUint32(mtu)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr); err != nil {
		t.Fatal(err)
	}
}

// Segments above the path MTU are refused by the kernel; plain datagrams of the same size get through in fragments.
func TestSegmentsAboveThePathMTU(t *testing.T) {
	if !runInNamespace(t) {
		return
	}
	setLoopback(t, 1280)
	for _, v6 := range []bool{false, true} {
		a, b := newBind(discard).(*udpBind), newBind(discard)
		openBind(t, a)
		recv4, recv6, port := openBind(t, b)
		recv := recv4
		if v6 {
			recv = recv6
		}
		parsed, _ := a.ParseEndpoint(loopback(v6, port))
		e := parsed.(*udpEndpoint)
		sent := newBufs(20, 1452)
		for i := range sent {
			sent[i][0] = byte(i)
		}
		if err := a.Send(sent, e); err != nil {
			t.Fatalf("v6=%v: %v", v6, err)
		}
		got, _ := receiveAll(t, recv, len(sent))
		for i := range got {
			if !bytes.Equal(got[i], sent[i]) {
				t.Fatalf("v6=%v: datagram %d differs", v6, i)
			}
		}
		if e.plain.Load() == 0 {
			t.Errorf("v6=%v: segmentation towards this destination is still on", v6)
		}
		if !a.v4.Load().gso.Load() || !a.v6.Load().gso.Load() {
			t.Error("segmentation was switched off for all destinations")
		}
		if err := a.Send(sent, e); err != nil {
			t.Errorf("v6=%v: second batch: %v", v6, err)
		}
		receiveAll(t, recv, len(sent))
	}
}
