package forward

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestFaultsWarnOnceAMinuteWithTheirCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		f := faults{log: log.logger(slog.LevelDebug), name: "front", target: "db:5432"}
		refused := errors.New("refused")
		for range 10 {
			f.report("open target", "10.0.0.1:1", refused)
			time.Sleep(10 * time.Second)
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		var warnings []string
		for _, line := range lines {
			if strings.Contains(line, "level=WARN") {
				warnings = append(warnings, line)
			} else if !strings.Contains(line, `msg="forward: open target" name=front client=10.0.0.1:1 target=db:5432 err=refused`) {
				t.Error("unexpected:", line)
			}
		}
		if len(lines) != 12 || len(warnings) != 2 || !strings.HasSuffix(warnings[0], "count=1") || !strings.HasSuffix(warnings[1], "count=6") {
			t.Errorf("log:\n%s", log.String())
		}
		if text, at := f.last(); text != "open target: refused" || time.Since(at) != 10*time.Second {
			t.Errorf("%q at %v", text, at)
		}
	})
}
