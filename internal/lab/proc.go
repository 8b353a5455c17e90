//go:build linux

package lab

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Proc is what the kernel tells of a process.
type Proc struct {
	CapEff, CapPrm, CapBnd string // hexadecimal sets
	NoNewPrivs             string
	RSS                    int      // KiB
	Files                  []string // what its descriptors refer to
}

// Proc reads the state of a process; a process that has ended has none.
func (p *Process) Proc() (s Proc, err error) {
	dir := "/proc/" + strconv.Itoa(p.PID)
	f, err := os.Open(dir + "/status")
	if err != nil {
		return s, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapEff":
			s.CapEff = value
		case "CapPrm":
			s.CapPrm = value
		case "CapBnd":
			s.CapBnd = value
		case "NoNewPrivs":
			s.NoNewPrivs = value
		case "VmRSS":
			s.RSS, _ = strconv.Atoi(strings.TrimSuffix(value, " kB"))
		}
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return s, err
	}
	for _, fd := range fds {
		if target, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil {
			s.Files = append(s.Files, target)
		}
	}
	return s, nil
}

// CPU returns the user and system time that the process has used, to the kernel's tick of 10 ms.
func (p *Process) CPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold spaces; utime and stime are fields 14 and 15.
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("read /proc/%d/stat: it has too few fields", p.PID)
	}
	user, err := strconv.Atoi(f[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(f[12])
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
	return time.Duration(user+system) * tick, err
}

// Children lists the processes that the process has started and not yet waited for.
func (p *Process) Children() (list []string) {
	pid := strconv.Itoa(p.PID)
	tasks, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		if b, err := os.ReadFile("/proc/" + pid + "/task/" + task.Name() + "/children"); err == nil {
			list = append(list, strings.Fields(string(b))...)
		}
	}
	return list
}
