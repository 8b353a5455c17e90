package proxy

import (
	"context"
	"errors"
	"time"
)

// connect serves CONNECT (RFC 9110 section 9.3.6): the client hears of success once the target has answered, and what it has
// sent behind its request is the first that the target gets.
func (x *httpConn) connect(ctx context.Context, q *httpRequest) (t *tunnel, more bool) {
	target, err := authorityTarget(q.uri, 0)
	switch {
	case err != nil:
		return nil, x.fail(q, malformed("CONNECT needs host:port: "+err.Error()))
	case q.length.body():
		return nil, x.fail(q, malformed("CONNECT with a body"))
	case x.loops(target):
		return nil, x.fail(q, loopFailure())
	}
	t = &tunnel{request: x.request(q, target), begin: time.Now()}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := x.watch(cancel, nil)
	t.target, err = x.s.dial(ctx, t.request)
	w.stop()
	if errors.Is(context.Cause(ctx), errGone) {
		if err == nil {
			t.target.Close()
		}
		return nil, false
	}
	if err != nil {
		f := dialFailure(target, err)
		f.end = true // bytes meant for the target may be on their way: they are no request
		return nil, x.fail(q, f)
	}
	if _, err := x.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		t.target.Close()
		return nil, false
	}
	x.c.SetWriteDeadline(time.Time{})
	t.client = x.detach()
	return t, false
}
