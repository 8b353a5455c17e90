//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const clockTick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go supports

// cpuTime is what the process has used so far, in user and system mode together.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	const userField, systemField = 14 - 3, 15 - 3 // proc_pid_stat(5), counted from the third
	if len(fields) <= systemField {
		return 0, fmt.Errorf("read CPU time of process %d: short line", pid)
	}
	user, err1 := strconv.ParseInt(fields[userField], 10, 64)
	system, err2 := strconv.ParseInt(fields[systemField], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("read CPU time of process %d: not numbers", pid)
	}
	return time.Duration(user+system) * clockTick, nil
}

// resident is the memory of the process, in bytes.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, fmt.Errorf("read memory of process %d: short line", pid)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return float64(pages) * float64(os.Getpagesize()), err
}
