// The service as it was: a hundred requests a minute for each client, counted in the
// memory of this process.
import express from 'express'
import { rateLimit } from 'express-rate-limit'

const app = express()
app.set('trust proxy', 1)

app.get('/health', (request, response) => response.send('ok'))

app.use(
	rateLimit({
		windowMs: 60_000,
		limit: 100,
		standardHeaders: 'draft-7',
		legacyHeaders: true,
	}),
)

app.get('/', (request, response) => {
	response.json({ remaining: request.rateLimit.remaining })
})

app.listen(Number(process.env.PORT ?? 3001), '127.0.0.1')
