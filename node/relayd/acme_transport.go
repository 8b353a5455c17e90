package relayd

import (
	"context"
	"io"
	"net/http"
)

// boundTransport ends requests when a context does. autocert works in goroutines and timers of its own, which know nothing of the
// relay's end: this way none of them talks to the authority any more.
type boundTransport struct {
	http.RoundTripper
	ctx context.Context
}

// RoundTrip implements http.RoundTripper.
func (t *boundTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(t.ctx, cancel)
	release := func() { stop(); cancel() }
	resp, err := t.RoundTripper.RoundTrip(r.WithContext(ctx))
	if err != nil {
		release()
		return nil, err
	}
	resp.Body = &boundBody{resp.Body, release}
	return resp, nil
}

// boundBody lets go of the context when it has been read.
type boundBody struct {
	io.ReadCloser
	release func()
}

// Close closes the body.
func (b *boundBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
