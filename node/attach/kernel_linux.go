package attach

import (
	"os"
	"path/filepath"
	"strings"
)

// isKernels reports whether an interface is a WireGuard of the kernel's.
func isKernels(name string) bool {
	if name != filepath.Base(name) {
		return false
	}
	b, err := os.ReadFile(filepath.Join("/sys/class/net", name, "uevent"))
	return err == nil && strings.Contains(string(b), "DEVTYPE=wireguard")
}
