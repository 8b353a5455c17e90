package relayd

import (
	"errors"
	"syscall"

	"culvert.dev/culvert/internal/config"
)

// allowProblem is why the allow file is not what the relay admits by. It is never changed.
type allowProblem struct {
	text   string
	closed bool // the file cannot be read at all, so that its keys are out
	again  bool // it may be better the next time, though the file does not change
}

// problemOf decides what an error of readRules means. With a line that is not understood the list from before stays: no misspelt
// line admits anybody, or throws everybody out. A file that cannot be read could say anything, so that nobody is admitted by it; but
// a shortage of the host's says nothing about the file.
func problemOf(err error) *allowProblem {
	var faults config.Errors
	if errors.As(err, &faults) {
		return &allowProblem{text: err.Error()}
	}
	for _, shortage := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR, syscall.EIO} {
		if errors.Is(err, shortage) {
			return &allowProblem{text: err.Error(), again: true}
		}
	}
	return &allowProblem{text: err.Error(), closed: true, again: true}
}

// refreshAllowed takes the allow file if it has changed, or could not be read before.
func (r *Relay) refreshAllowed() {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	conf, before := r.conf.Load(), r.allowProblem.Load()
	if !r.allowed.changed(conf.Server.AllowFile) && (before == nil || !before.again) {
		return
	}
	rules, err := readRules(conf, r.open(conf))
	if err == nil {
		r.useRulesLocked(conf, rules)
		return
	}
	p := problemOf(err)
	r.allowProblem.Store(p)
	switch told := before != nil && before.text == p.text; {
	case told:
	case p.closed:
		r.log.Error("the allow file cannot be read: its keys are not admitted until it can be, by the user that the relay runs as", "err", err)
	default:
		r.log.Error("the allow list stays as it was", "err", err)
	}
	if p.closed {
		r.admitByLocked(conf, rulesOf(conf.Server.Allow, r.open(conf)))
	}
}

// useRulesLocked admits by new rules, which are all that the configuration and the allow file say.
func (r *Relay) useRulesLocked(conf *config.RelayConfig, rules *rules) {
	if r.allowProblem.Swap(nil) != nil {
		r.log.Info("the allow file is in order again")
	}
	r.admitByLocked(conf, rules)
}

// admitByLocked admits by new rules, from here on and those who are here already.
func (r *Relay) admitByLocked(conf *config.RelayConfig, rules *rules) {
	added, removed := r.admission.set(rules)
	if r.wgstun != nil {
		r.wgstun.setFixed(fixedPeers(conf, rules))
	}
	r.server.Recheck()
	if added > 0 || removed > 0 {
		r.log.Info("allow list has changed", "keys", len(rules.names), "added", added, "removed", removed)
	}
}
