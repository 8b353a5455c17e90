package stream

import "context"

// serverKey is for the Server in the context of its handlers.
type serverKey struct{}

// Draining returns a context that ends when the Server whose handler ctx belongs to stops accepting. A handler should then end
// what merely waits for a client's next request, so that Shutdown is not held up by it. Elsewhere it never ends.
func Draining(ctx context.Context) context.Context {
	if s, ok := ctx.Value(serverKey{}).(*Server); ok {
		return s.draining
	}
	return context.Background()
}
