package thrift

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestMemoryLimitOfTheContainer(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	t.Setenv("GOMEMLIMIT", "")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	missing := filepath.Join(dir, "missing")
	for _, c := range []struct {
		files []string
		want  int64 // 0: none
	}{
		{[]string{file("v2", "268435456\n")}, 241591905},
		{[]string{missing, file("v1", "268435456")}, 241591905},
		{[]string{file("unlimited2", "max\n"), missing}, 0},
		{[]string{file("unlimited1", "9223372036854771712\n")}, 0},
		{[]string{file("nonsense", "lots")}, 0},
		{[]string{missing}, 0},
	} {
		got, ok := heedLimit(c.files)
		if got != c.want || ok != (c.want > 0) {
			t.Errorf("%q: %d, %v, want %d", c.files, got, ok, c.want)
		}
		if ok && debug.SetMemoryLimit(-1) != c.want {
			t.Errorf("%q: the runtime has %d", c.files, debug.SetMemoryLimit(-1))
		}
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	if _, ok := heedLimit([]string{filepath.Join(dir, "v2")}); ok {
		t.Error("GOMEMLIMIT gives way")
	}
}
