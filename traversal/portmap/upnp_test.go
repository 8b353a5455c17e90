package portmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestSearchAnswers(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
	for _, c := range []struct{ name, answer, want string }{ // want: host port path; "" for none
		{"as the standard has it", head + "LOCATION: http://192.168.1.1:5000/rootDesc.xml\r\nUSN: uuid:1\r\n\r\n", "192.168.1.1 5000 /rootDesc.xml"},
		{"another spelling, no end", head + "Location:http://192.168.1.1/gw?x=1", "192.168.1.1 80 /gw?x=1"},
		{"newlines only", strings.ReplaceAll(head, "\r", "") + "location: http://192.168.1.1:49152\n\n", "192.168.1.1 49152 /"},
		{"IPv6", head + "LOCATION: http://[2001:db8::1]:5000/rootDesc.xml\r\n\r\n", "2001:db8::1 5000 /rootDesc.xml"},
		{"IPv6 with a zone", head + "LOCATION: http://[fe80::1%25eth0]:5000/d\r\n\r\n", "fe80::1%eth0 5000 /d"},
		{"a notification", "NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n", ""},
		{"a search", string(searchRequest(netip.MustParseAddrPort("192.168.1.1:1900"), "x")), ""},
		{"an error", "HTTP/1.1 404 Not Found\r\nLOCATION: http://192.168.1.1/\r\n\r\n", ""},
		{"after the end of the header", head + "\r\nLOCATION: http://192.168.1.1/\r\n", ""},
		{"no location", head + "\r\n", ""},
		{"a name", head + "LOCATION: http://router.example/\r\n\r\n", ""},
		{"another scheme", head + "LOCATION: https://192.168.1.1/\r\n\r\n", ""},
		{"a file", head + "LOCATION: file:///etc/passwd\r\n\r\n", ""},
		{"a password", head + "LOCATION: http://a:b@192.168.1.1/\r\n\r\n", ""},
		{"port 0", head + "LOCATION: http://192.168.1.1:0/\r\n\r\n", ""},
		{"port 65536", head + "LOCATION: http://192.168.1.1:65536/\r\n\r\n", ""},
		{"very long", head + "LOCATION: http://192.168.1.1/" + strings.Repeat("a", maxLocation) + "\r\n\r\n", ""},
		{"nothing", "", ""},
	} {
		l, ok := parseSearchAnswer([]byte(c.answer))
		got := ""
		if ok {
			got = fmt.Sprint(l.host, " ", l.port, " ", l.path)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSearchRequest(t *testing.T) {
	got := string(searchRequest(netip.MustParseAddrPort("[ff02::c%eth0]:1900"), "urn:x"))
	want := "M-SEARCH * HTTP/1.1\r\nHOST: [ff02::c]:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:x\r\n\r\n"
	if got != want {
		t.Errorf("%q", got)
	}
}

// device renders a description; services are pairs of type and control URL.
func device(version int, base string, services ...[2]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>%s`+
		`<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:%d</deviceType><friendlyName>x</friendlyName>`+
		`<manufacturer>Maker</manufacturer><modelName>Model &amp; Co</modelName><modelNumber>7</modelNumber><deviceList><device>`+
		`<deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><modelName>inner</modelName><deviceList><device><serviceList>`, base, version)
	for _, s := range services {
		fmt.Fprintf(&b, `<service><serviceType>%s</serviceType><serviceId>i</serviceId><controlURL>%s</controlURL><SCPDURL>/s</SCPDURL></service>`, s[0], s[1])
	}
	b.WriteString(`</serviceList></device></deviceList></device></deviceList></device></root>`)
	return b.String()
}

func TestDescriptions(t *testing.T) {
	at := location{netip.MustParseAddr("192.168.1.1"), 5000, "/d/root.xml"}
	show := func(d description) (list []string) {
		for _, s := range d.services {
			list = append(list, fmt.Sprintf("%s %v:%d%s", s.kind[strings.LastIndex(s.kind, "service:")+8:], s.control.host, s.control.port, s.control.path))
		}
		return list
	}
	for _, c := range []struct {
		name, doc string
		want      []string
	}{
		{"version 1", device(1, "", [2]string{typeIP + "1", "/ctl/IPConn"}), []string{"WANIPConnection:1 192.168.1.1:5000/ctl/IPConn"}},
		{"preference", device(2, "", [2]string{typeFirewall + "1", "/6"}, [2]string{typePPP + "1", "/ppp"}, [2]string{"urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3"}, [2]string{typeIP + "2", "/ip"}),
			[]string{"WANIPConnection:2 192.168.1.1:5000/ip", "WANPPPConnection:1 192.168.1.1:5000/ppp", "WANIPv6FirewallControl:1 192.168.1.1:5000/6"}},
		{"relative", device(1, "", [2]string{typeIP + "1", "ctl?a=b"}), []string{"WANIPConnection:1 192.168.1.1:5000/d/ctl?a=b"}},
		{"absolute", device(1, "", [2]string{typeIP + "1", "http://192.168.1.1:6000/x"}), []string{"WANIPConnection:1 192.168.1.1:6000/x"}},
		{"with URLBase", device(1, "<URLBase>http://192.168.1.1:7000/</URLBase>", [2]string{typeIP + "1", "x"}), []string{"WANIPConnection:1 192.168.1.1:7000/x"}},
		{"a URLBase that is none", device(1, "<URLBase>gopher:</URLBase>", [2]string{typeIP + "1", "/x"}), []string{"WANIPConnection:1 192.168.1.1:5000/x"}},
		{"a control URL by a name", device(1, "", [2]string{typeIP + "1", "http://evil.example/x"}), nil},
		{"too many", device(1, "", slices.Repeat([][2]string{{typeIP + "1", "/x"}}, 9)...), slices.Repeat([]string{"WANIPConnection:1 192.168.1.1:5000/x"}, maxServices)},
		{"another charset", strings.Replace(device(1, "", [2]string{typeIP + "1", "/x"}), `"1.0"?`, `"1.0" encoding="ISO-8859-1"?`, 1), []string{"WANIPConnection:1 192.168.1.1:5000/x"}},
		{"no services", device(1, ""), nil},
	} {
		d, err := parseDescription([]byte(c.doc), at)
		if err != nil || !slices.Equal(show(d), c.want) {
			t.Errorf("%s: %v %v, want %v", c.name, show(d), err, c.want)
		}
		if d.model != "Maker Model & Co 7" {
			t.Errorf("%s: model %q", c.name, d.model)
		}
	}
	if v := (igdService{kind: typeIP + "2"}).version(); v != 2 {
		t.Errorf("version %d", v)
	}
	if v := (igdService{kind: typeIP}).version(); v != 1 {
		t.Errorf("without version: %d", v)
	}
}

func TestXMLIsBounded(t *testing.T) {
	for name, doc := range map[string]string{
		"too large":       "<a>" + strings.Repeat("x", maxBody) + "</a>",
		"too deep":        strings.Repeat("<a>", maxDepth+1) + strings.Repeat("</a>", maxDepth+1),
		"too many parts":  "<a>" + strings.Repeat("<b/>", maxTokens/2+1) + "</a>",
		"a document type": `<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`,
		"an entity":       `<a>&b;</a>`,
		"not closed":      `<a><b></b>`,
		"closed wrongly":  `<a></b></a>`,
		"only an end":     `</a>`,
		"a charset":       `<?xml version="1.0" encoding="utf-7"?><a></a>`,
		"no XML":          `HTTP/1.1 200 OK < &`,
	} {
		if err := walkXML([]byte(doc), nil, nil, func([]string, string) {}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	length := 0
	err := walkXML([]byte("<a>"+strings.Repeat("x", 10*maxText)+"</a>"), nil, nil, func(_ []string, text string) { length = len(text) })
	if err != nil || length != maxText {
		t.Errorf("of a long text %d bytes are kept: %v", length, err)
	}
}

func envelope(body string) string {
	return `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>` + body + `</s:Body></s:Envelope>`
}

func soapFault(code int) string {
	return envelope(fmt.Sprintf(`<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>`+
		`<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>Odd%cthing</errorDescription></UPnPError></detail></s:Fault>`, code, '\t'))
}

func TestSOAP(t *testing.T) {
	got := soapRequest(typeIP+"1", "AddPortMapping", []argument{{"NewRemoteHost", ""}, {"NewPortMappingDescription", "<&>"}})
	want := `<u:AddPortMapping xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewRemoteHost></NewRemoteHost>` +
		`<NewPortMappingDescription>&lt;&amp;&gt;</NewPortMappingDescription></u:AddPortMapping></s:Body></s:Envelope>`
	if !strings.Contains(got, want) {
		t.Errorf("%s", got)
	}
	values, err := parseSOAP([]byte(envelope(`<m:GetExternalIPAddressResponse xmlns:m="x"><NewExternalIPAddress> 44.1.2.3 </NewExternalIPAddress></m:GetExternalIPAddressResponse>`)), "GetExternalIPAddress")
	if err != nil || values["NewExternalIPAddress"] != "44.1.2.3" {
		t.Errorf("%v %v", values, err)
	}
	if _, err := parseSOAP([]byte(envelope(`<u:XResponse/>`)), "X"); err != nil {
		t.Errorf("an answer without values: %v", err)
	}
	_, err = parseSOAP([]byte(soapFault(799)), "X")
	if resultCode(err) != 799 || err.Error() != "upnp result 799: Odd thing" {
		t.Errorf("a fault: %v", err)
	}
	if _, err = parseSOAP([]byte(soapFault(401)), "X"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("an unknown action: %v", err)
	}
	for name, doc := range map[string]string{
		"the answer to something else": envelope(`<u:YResponse/>`),
		"no body":                      `<Envelope><XResponse/></Envelope>`,
		"another root":                 `<html><Body><XResponse/></Body></html>`,
		"a fault without a number":     envelope(`<s:Fault><errorCode>many</errorCode></s:Fault>`),
	} {
		if v, err := parseSOAP([]byte(doc), "X"); !errors.Is(err, errXML) {
			t.Errorf("%s: %v %v", name, v, err)
		}
	}
}

func TestResultTexts(t *testing.T) {
	for _, c := range []struct {
		err  *ResultError
		want string
	}{
		{&ResultError{Protocol: PCP, Code: 12}, "pcp result 12: address mismatch: there is another NAT before the gateway"},
		{&ResultError{Protocol: NATPMP, Code: 2}, "nat-pmp result 2: refused: port mapping is off on the gateway"},
		{&ResultError{Protocol: UPnP, Code: 606}, "upnp result 606: not authorised: the gateway's settings forbid it"},
		{&ResultError{Protocol: PCP, Code: 99}, "pcp result 99"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
