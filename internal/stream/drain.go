package stream

import "context"

type drainingKey struct{}

// Draining returns a context that ends when the Server whose handler ctx belongs to stops accepting. A handler should then end
// what merely waits for a client's next request, so that Shutdown is not held up by it. Elsewhere it never ends.
func Draining(ctx context.Context) context.Context {
	if draining, ok := ctx.Value(drainingKey{}).(context.Context); ok {
		return draining
	}
	return context.Background()
}
