package thrift

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// limitFiles hold what the process's control group may use, of version 2 and 1, as a container sees them.
var limitFiles = []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}

// heedLimit has the runtime collect harder as the process comes near to what its container may use, before the kernel ends it.
// GOMEMLIMIT takes precedence.
func heedLimit(files []string) (limit int64, ok bool) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0, false
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if limit, ok = softLimit(string(b)); ok {
			debug.SetMemoryLimit(limit)
			return limit, true
		}
	}
	return 0, false
}

// softLimit is nine tenths of a control group's limit: the rest is for what the runtime does not count. A group without a limit has
// the word max, or a number beyond any machine.
func softLimit(text string) (limit int64, ok bool) {
	const least, most = 16 << 20, 1 << 50
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n < least || n > most {
		return 0, false
	}
	return n / 10 * 9, true
}
