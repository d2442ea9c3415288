// Reads a list of responses' header fields, and prints what a parser for clients
// makes of each: limit, remaining, and the seconds until the reset.
import { parseRateLimit } from 'ratelimit-header-parser'
import { text } from 'node:stream/consumers'

const parsed = JSON.parse(await text(process.stdin)).map((fields) => {
	const found = parseRateLimit(fields)
	if (!found) return null
	return { limit: found.limit, remaining: found.remaining, reset: Math.round((found.reset - Date.now()) / 1000) }
})
console.log(JSON.stringify(parsed))
