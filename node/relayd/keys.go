package relayd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/wgkey"
)

const (
	lockFile  = "relay.lock" // in the state folder
	lockWait  = 2 * time.Second
	lockRetry = 50 * time.Millisecond
)

// lockState takes the state folder for this process. A relay that drains has let go of it; one that is about to, since both were
// told in the same moment, is waited for.
func lockState(ctx context.Context, state string) (*control.Lock, error) {
	path := filepath.Join(state, lockFile)
	deadline := time.Now().Add(lockWait)
	for {
		lock, err := control.Acquire(path)
		var inUse *control.InUseError
		switch {
		case err == nil:
			return lock, nil
		case !errors.As(err, &inUse):
			return nil, fmt.Errorf("state folder: %w; --state names another", err)
		}
		if time.Now().After(deadline) {
			return nil, alreadyRunning(state, inUse.PID)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockRetry):
		}
	}
}

func alreadyRunning(state string, pid int) error {
	who := "another relay"
	if pid != 0 {
		who = fmt.Sprintf("another relay (pid %d)", pid)
	}
	return fmt.Errorf("%s runs with the state folder %s; end it with SIGTERM first, or name another folder with --state", who, state)
}

// ensureKeys makes the keys that the configuration has no other place for and that do not exist yet.
func ensureKeys(conf *config.RelayConfig) error {
	if err := ensureKey(&conf.Server.Key, "relay"); err != nil {
		return err
	}
	if len(conf.WGSTUN.Listen) == 0 {
		return nil
	}
	return ensureKey(&conf.WGSTUN.Key, "WG-STUN")
}

func ensureKey(k *config.RelayKey, whose string) error {
	if !k.Private.IsZero() {
		return nil
	}
	key, err := wgkey.NewPrivate()
	if err != nil {
		return err
	}
	if err := config.WriteSecret(k.File, key.Reveal()+"\n"); err != nil {
		return fmt.Errorf("%s key: %w", whose, err)
	}
	k.Private = key
	return nil
}
