package proxy

import (
	"context"
	"encoding/base64"
	"strings"
)

// authenticate finds who asks. The answer to a refusal leaves the connection open, so that the client can try again. Wrong
// credentials take a while, none at all do not: that is how programs begin.
func (x *httpConn) authenticate(ctx context.Context, q *httpRequest) *httpFailure {
	values := q.fields.values("Proxy-Authorization")
	if len(values) > 1 {
		return malformed("more than one Proxy-Authorization")
	}
	var user, password string
	given := false
	if len(values) == 1 {
		user, password, given = basicCredentials(values[0])
	}
	var ok bool
	if given {
		q.user, q.exit, ok = x.s.loginFrom(ctx, clientOf(x.c).Addr(), user, password)
	} else {
		q.user, q.exit, ok = x.s.login("", "")
	}
	if ok {
		return nil
	}
	f := &httpFailure{status: 407, kind: "http_request_denied", text: "this proxy asks for a user name and a password"}
	if given {
		f.text = "the user name or the password is wrong"
	}
	f.fields = httpFields{{"Proxy-Authenticate", `Basic realm="culvert"`}}
	return f
}

// basicCredentials reads the value of a Proxy-Authorization field of the scheme Basic (RFC 7617).
func basicCredentials(value string) (user, password string, ok bool) {
	scheme, encoded, _ := strings.Cut(strings.Trim(value, " "), " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	plain, err := base64.StdEncoding.DecodeString(strings.Trim(encoded, " "))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(plain), ":")
}
