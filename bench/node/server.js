// An Express site that answers "ok", without a limiter or with the one that
// Express users take: express-rate-limit on rate-limit-redis, set up as the
// latter's manual does. It is told what to do by the environment.
import express from 'express'
import { rateLimit } from 'express-rate-limit'
import { RedisStore } from 'rate-limit-redis'
import { createClient } from 'redis'

const app = express()

if (process.env.LIMIT === 'redis') {
	const client = createClient({ url: process.env.REDIS_URL })
	client.on('error', () => {}) // shows as failed requests
	await client.connect()
	app.use(
		rateLimit({
			windowMs: Number(process.env.WINDOW_MS),
			limit: Number(process.env.EVENTS),
			standardHeaders: true,
			legacyHeaders: false,
			store: new RedisStore({
				sendCommand: (...args) => client.sendCommand(args),
			}),
		}),
	)
}

app.get('/', (request, response) => {
	response.send('ok')
})
app.listen(Number(process.env.PORT), '127.0.0.1')
