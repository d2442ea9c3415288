// Three routes in front of LLMs, each with 30 requests in 60 seconds for each user, as
// @upstash/ratelimit counts them.
import express from 'express'
import { Ratelimit } from '@upstash/ratelimit'
import { Redis } from '@upstash/redis'

const routes = ['chat', 'summary', 'translate']
const llm = process.env.LLM_URL ?? 'https://api.openai.com'
const redis = Redis.fromEnv()
const app = express()

for (const route of routes) {
	const ratelimit = new Ratelimit({
		redis,
		limiter: Ratelimit.slidingWindow(30, '60 s'),
		prefix: route,
	})
	app.use('/api/' + route, async (request, response, next) => {
		const { success, remaining, reset } = await ratelimit.limit(request.get('X-User'))
		response.set('X-RateLimit-Limit', '30')
		response.set('X-RateLimit-Remaining', String(remaining))
		response.set('X-RateLimit-Reset', String(Math.ceil(reset / 1000)))
		if (!success) return response.status(429).json({ error: 'Too many requests' })
		next()
	})
}

// What asks the LLM.
app.post(routes.map((route) => '/api/' + route), async (request, response) => {
	const answer = await fetch(llm + '/v1/chat/completions', {
		method: 'POST',
		headers: { 'Content-Type': 'application/json', Authorization: 'Bearer ' + process.env.OPENAI_API_KEY },
		body: JSON.stringify({ model: 'gpt-5', max_completion_tokens: 500, messages: [{ role: 'user', content: 'Hello' }] }),
	})
	response.status(answer.status).json(await answer.json())
})

app.listen(Number(process.env.PORT ?? 3000), '127.0.0.1')
