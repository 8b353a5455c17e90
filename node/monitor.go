package node

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
)

// monitor is what tells of the node to those who do not ask on the control socket: the flow log and the HTTP listener. Node.mu
// guards it, once the node has started.
type monitor struct {
	flowLog *flowLog
	http    *control.HTTPServer
	addr    netip.AddrPort // as configured, of http
}

// prepareMonitor opens what conf asks for and is not open yet. The caller either commits, or rolls back: then all is as before.
func (n *Node) prepareMonitor(conf *config.Config) (commit, rollback func(), err error) {
	var file io.WriteCloser
	if conf.Control.FlowLog != "" {
		if file, err = openFlowLog(conf.Control, conf.File); err != nil {
			return nil, nil, err
		}
	}
	closeFile := func() {
		if file != nil {
			file.Close()
		}
	}
	commitHTTP, rollbackHTTP, err := n.prepareHTTP(conf.Control.HTTP)
	if err != nil {
		closeFile()
		return nil, nil, fmt.Errorf("%s: [Control] HTTP: %w", conf.File, err)
	}
	commit = func() {
		commitHTTP()
		n.monitor.setFlowLog(n, file)
	}
	rollback = func() {
		rollbackHTTP()
		closeFile()
	}
	return commit, rollback, nil
}

// setFlowLog goes on in w; nil ends the log.
func (m *monitor) setFlowLog(n *Node, w io.WriteCloser) {
	defer func() { n.flowLog.Store(m.flowLog) }()
	switch {
	case w == nil && m.flowLog != nil:
		m.flowLog.close()
		m.flowLog = nil
	case w != nil && m.flowLog != nil:
		m.flowLog.use(w)
	case w != nil:
		m.flowLog = startFlowLog(w, n)
	}
}

// prepareHTTP opens the listener at addr, unless it is open already. The zero address means none.
func (n *Node) prepareHTTP(addr netip.AddrPort) (commit, rollback func(), err error) {
	m := &n.monitor
	old, oldAddr := m.http, m.addr
	nothing := func() {}
	if addr == oldAddr {
		return nothing, nothing, nil
	}
	inTheWay := old != nil && addr.Port() == oldAddr.Port() // both addresses may be one to the kernel
	if inTheWay {
		stopHTTP(old)
	}
	restore := func() {
		if !inTheWay {
			return
		}
		again, err := control.ListenHTTP(oldAddr, source{n}, n.log)
		if err != nil {
			n.log.Error("HTTP is no longer served", "err", err)
			oldAddr = netip.AddrPort{} // the next reload tries again
		}
		m.http, m.addr = again, oldAddr
	}
	var next *control.HTTPServer
	if addr.IsValid() {
		var failed error
		if next, failed = control.ListenHTTP(addr, source{n}, n.log); failed != nil {
			restore()
			return nil, nil, failed
		}
	}
	commit = func() {
		if !inTheWay {
			stopHTTP(old)
		}
		m.http, m.addr = next, addr
	}
	rollback = func() {
		stopHTTP(next)
		restore()
	}
	return commit, rollback, nil
}

func stopHTTP(s *control.HTTPServer) {
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), controlTime)
	defer cancel()
	s.Shutdown(ctx)
}

// closeHTTP ends the listener, and closeFlowLog the log: the one before the data path closes, the other after.
func (n *Node) closeHTTP() {
	n.mu.Lock()
	s := n.monitor.http
	n.monitor.http = nil
	n.mu.Unlock()
	stopHTTP(s)
}

func (n *Node) closeFlowLog() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.monitor.setFlowLog(n, nil)
}
