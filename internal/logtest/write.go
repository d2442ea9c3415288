package logtest

import (
	"strconv"
	"time"
)

var assets = []string{"/assets/site.css?v=41", "/assets/app.js?v=41", "/images/logo.svg", "/images/hero-1600.avif", "/fonts/inter.woff2", "/images/p/1201.webp", "/images/p/1202.webp", "/api/v2/cart", "/favicon.ico"}

// agents are browsers; programs follow.
var agents = []string{
	"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/133.0.0.0 Safari/537.36",
	"Mozilla/5.0 (iPhone; CPU iPhone OS 18_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.3 Mobile/15E148 Safari/604.1",
	"Mozilla/5.0 (X11; Linux x86_64; rv:135.0) Gecko/20100101 Firefox/135.0",
}

var programs = []string{"orders-sync/2.4 (+https://customer.example)", "Feedly/1.0 (+https://feedly.example/fetcher)", "ExampleBot/1.7 (+https://bot.example/about)", "python-requests/2.32"}

func agent(n int) string {
	if n < len(agents) {
		return agents[n]
	}
	return programs[n-len(agents)]
}

func (g *generator) write(r request) {
	if g.Common {
		g.line = g.appendCombined(g.line[:0], &r)
	} else {
		g.line = g.appendJSON(g.line[:0], &r)
	}
	n, err := g.to.Write(g.line)
	if g.err == nil {
		g.err = err
	}
	g.written++
	g.bytes += int64(n)
}

func (g *generator) appendJSON(b []byte, r *request) []byte {
	text := func(before, value string) { b = append(append(append(b, before...), value...), '"') }
	number := func(before string, value int) { b = strconv.AppendInt(append(b, before...), int64(value), 10) }
	seconds := func(before string, d int64) {
		b = strconv.AppendFloat(append(b, before...), float64(d)/1e6, 'f', -1, 64)
	}
	seconds(`{"level":"info","ts":`, g.Start.Add(r.end).UnixMicro())
	client := r.client.String()
	text(`,"logger":"http.log.access.log0","msg":"handled request","request":{"remote_ip":"`, client)
	number(`,"remote_port":"`, 20_000+int(g.written%40_000))
	text(`","client_ip":"`, client)
	text(`,"proto":"HTTP/2.0","method":"`, r.method)
	text(`,"host":"`, g.Host)
	text(`,"uri":"`, r.path)
	text(`,"headers":{"User-Agent":["`, agent(r.agent))
	b = append(b, ']')
	if r.agent < len(agents) {
		b = append(b, `,"Accept":["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],"Accept-Language":["en-US,en;q=0.5"],"Cookie":["REDACTED"],"Sec-Fetch-Mode":["navigate"]`...)
	}
	if r.user != "" {
		b = append(b, `,"Authorization":["REDACTED"],"X-Api-Key":["key-of-`...)
		b = append(append(b, r.user...), `"]`...)
	}
	if r.referer {
		text(`,"Referer":["https://`, g.Host+`/\"start\"`)
		b = append(b, ']')
	}
	text(`,"Accept-Encoding":["gzip, deflate, br, zstd"]},"tls":{"resumed":false,"version":772,"cipher_suite":4865,"proto":"h2","server_name":"`, g.Host)
	text(`,"ech":false}},"bytes_read":0,"user_id":"`, r.user)
	seconds(`,"duration":`, r.took.Microseconds())
	number(`,"size":`, r.size)
	number(`,"status":`, r.status)
	return append(b, `,"resp_headers":{"Server":["Caddy"],"Alt-Svc":["h3=\":443\"; ma=2592000"],"Content-Type":["text/html; charset=utf-8"],"Content-Encoding":["gzip"],"Vary":["Accept-Encoding"]}}`+"\n"...)
}

func (g *generator) appendCombined(b []byte, r *request) []byte {
	user := r.user
	if user == "" {
		user = "-"
	}
	b = append(b, r.client.String()+" - "+user+" ["...)
	b = g.Start.Add(r.end).In(time.UTC).AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `] "`+r.method+" "+r.path+` HTTP/2.0" `...)
	b = strconv.AppendInt(b, int64(r.status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(r.size), 10)
	return append(b, ` "-" "`+agent(r.agent)+"\"\n"...)
}
