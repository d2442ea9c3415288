// A site whose answers are those of @upstash/ratelimit: its limiter is named in
// LIMITER. GET /clock?at=N stops the clock, N milliseconds into the present minute.
import express from 'express'
import { Ratelimit } from '@upstash/ratelimit'
import { Redis } from '@upstash/redis'

const now = Date.now
const start = now() - (now() % 60_000)

const limiters = {
	sliding: Ratelimit.slidingWindow(30, '60 s'),
	fixed: Ratelimit.fixedWindow(30, '60 s'),
	bucket: Ratelimit.tokenBucket(5, '10 s', 20),
}
const ratelimit = new Ratelimit({
	redis: Redis.fromEnv({ retry: false }),
	limiter: limiters[process.env.LIMITER],
	timeout: Number(process.env.TIMEOUT ?? 60_000),
})

const app = express()
app.get('/clock', (request, response) => {
	const at = start + Number(request.query.at)
	Date.now = () => at
	response.send('ok')
})
app.use(async (request, response) => {
	const { success, limit, remaining, reset, reason } = await ratelimit.limit('someone', { rate: Number(request.query.rate ?? 1) })
	response.status(success ? 200 : 429).json({ limit, remaining, reset: reset - Date.now(), reason })
})
app.listen(Number(process.env.PORT), '127.0.0.1')
