//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The laboratory's world is entered in three stages, each a re-execution of the calling binary:
//
//	outside  makes the user, mount and PID namespaces
//	build    mounts a private /run and /proc, builds the programs into /run (it still has the machine's network, which the
//	         module proxy may need), makes the network namespace
//	run      calls the function it was given
//
// The PID namespace is what makes cleaning up certain: when its first process ends, the kernel kills all others, and the
// mounts and network namespaces go with them.
const (
	stageEnv   = "CULVERT_LAB_STAGE"
	stageBuild = "build"
	stageRun   = "run"

	// refusedEnv carries the reason why the world could not be made to the function that runs without it.
	refusedEnv = "CULVERT_LAB_REFUSED"

	// rootlessEnv, when not empty, makes root use a user namespace too, so that both ways can be tested on one machine.
	rootlessEnv = "CULVERT_LAB_ROOTLESS"

	runDir = "/run/lab"
)

// exitRefused is the exit status by which the build stage says that the machine refused a mount. Its stderr says which.
const exitRefused = 120

// Main runs run inside the laboratory's world, after building the programs there, and returns the exit status. Where the
// world cannot be made it calls run outside, and New skips.
func Main(run func() int, programs ...Program) int {
	sbin()
	switch os.Getenv(stageEnv) {
	case stageBuild:
		return buildStage(programs)
	case stageRun:
		scrub()
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
		return run()
	}
	reason := missing()
	if reason == "" {
		status, err := outside()
		if err == nil && status != exitRefused {
			return status
		}
		reason = "the machine refuses user, mount or network namespaces"
		if err != nil {
			reason += ": " + err.Error()
		}
	}
	os.Setenv(refusedEnv, reason)
	fmt.Println("SKIP laboratory:", reason)
	return run()
}

// sbin completes PATH: ip, nft and traceroute lie in sbin, which an ordinary user's PATH often leaves out.
func sbin() {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
}

// missing names the first thing without which no laboratory works, or nothing.
func missing() string {
	for _, p := range []string{"go", "ip", "nft", "wg", "setpriv"} {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is not installed"
		}
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	f.Close()
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return "the kernel has no IPv6"
	}
	return ""
}

// outside starts the build stage in new namespaces. Root needs no user namespace, unless its capabilities were taken away
// or the environment asks for the way that other users go.
func outside() (status int, err error) {
	const flags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
	if os.Geteuid() == 0 && os.Getenv(rootlessEnv) == "" {
		status, err = reexec(stageBuild, &syscall.SysProcAttr{Cloneflags: flags})
		if !errors.Is(err, syscall.EPERM) {
			return status, err
		}
	}
	return reexec(stageBuild, &syscall.SysProcAttr{
		Cloneflags:  flags | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
}

// reexec runs this binary again as the next stage and waits for it. The stage dies with this process.
func reexec(stage string, attr *syscall.SysProcAttr) (status int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	attr.Pdeathsig = syscall.SIGKILL
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageEnv+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr

	// A terminal sends ^C to the whole process group, and go test sends its signals to this process: pass both on.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if exit.ExitCode() < 0 { // killed by a signal
			return 1, nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

func buildStage(programs []Program) int {
	if err := mounts(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return exitRefused
	}
	for _, p := range programs {
		if err := p.build(); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
	}
	status, err := reexec(stageRun, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: make a network namespace:", err)
		return exitRefused
	}
	return status
}

// mounts gives the world its own /run, for programs, named network namespaces and temporary files, and a /proc that shows
// its own processes only.
func mounts() error {
	resolver, content := "/etc/resolv.conf", []byte(nil)
	if target, err := filepath.EvalSymlinks(resolver); err == nil {
		resolver = target
		content, _ = os.ReadFile(target)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("lab", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount a private /run: %w", err)
	}
	for _, dir := range []string{runDir + "/bin", runDir + "/tmp", "/run/netns", "/run/wireguard"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// systemd-resolved keeps resolv.conf in /run, which is hidden now: put it back, as names are needed for the build and
	// as nodes mount their own over it.
	if strings.HasPrefix(resolver, "/run/") {
		if err := os.MkdirAll(filepath.Dir(resolver), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(resolver, content, 0o644); err != nil {
			return err
		}
	}
	// Only from here on: the go command of the build stage and the tests keep their files inside the world.
	return os.Setenv("TMPDIR", runDir+"/tmp")
}

// scrub removes what the caller's environment says about places that do not exist in the world, or that a program under
// test would read its options from.
func scrub() {
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		own := key == stageEnv || key == requireEnv || key == raceEnv
		if strings.HasPrefix(key, "XDG_") || strings.HasPrefix(key, "CULVERT_") && !own {
			os.Unsetenv(key)
		}
	}
}

// loopbackUp makes the stage's own empty network usable for the net package, which probes ::1 to learn what is supported.
func loopbackUp() error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("bring lo up: %w: %s", err, out)
	}
	return nil
}
